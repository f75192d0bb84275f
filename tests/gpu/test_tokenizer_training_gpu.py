"""Training the tokenizer on a GPU: the CPU's losses in fp32, falling ones in bf16, a checkpoint."""

import copy

import pytest
import torch
from support.tokenizers import make_clips, make_photos, start_tokenizer, tokenizer_recipe

from emu3_megatron.tokenizer_training.forward import Networks
from emu3_megatron.tokenizer_training.groups import groups_of

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    photos, clips = make_photos(folder / "photos"), make_clips(folder / "clips")
    return tokenizer_recipe(
        folder,
        photos,
        run={"steps": 40},
        data={"clips": clips, "clip_frames": 4, "clip_fps": 8, "clip_share": 0.3},
        batch={"size": 4},
        codebook={"plain_steps": 12, "restart_after": 4},
        optimizer={"lr": 1e-3, "muon": {}},
        ema={"decay": 0.9},
        adversarial={"start": 6, "warmup": 8, "layers": 1, "channels": 8, "lecam": 0.1},
        recompute=True,
    )


def losses(steps):
    return [result.metrics["loss"] for result in steps.results]


def test_in_bf16_pictures_come_back(mesh, recipe):
    steps = start_tokenizer(recipe.model_copy(update={"precision": "bf16"}), mesh)
    steps.take(0, 40)
    l2 = [result.metrics["l2"] for result in steps.results]
    assert sum(l2[-5:]) < 0.3 * sum(l2[:5])
    assert steps.results[-1].metrics["codebook_usage"] > 0.5


def test_the_first_loss_is_that_of_a_cpu(mesh, recipe):
    steps = start_tokenizer(recipe, mesh)
    networks = copy.deepcopy(steps.trainer.networks.tokenizer).cpu()
    samples = next(steps.data.batches(steps, 0, 1))
    steps.take(0, 1)

    phase = steps.trainer._phase(1)
    on_cpu = Networks(networks, {"l2": 1.0, "codebook": 0.25, "commitment": 1.0})
    totals = [on_cpu.backward(group, phase).total.item() for group in groups_of(samples, 1)]
    assert losses(steps)[0] == pytest.approx(sum(totals) / len(totals), rel=1e-3)


def test_resumed_goes_on_as_it_was(mesh, recipe, tmp_path):
    steps = start_tokenizer(recipe, mesh)
    steps.take(0, 16)
    steps.save(tmp_path, 16)
    resumed = start_tokenizer(recipe, mesh)
    assert resumed.load(tmp_path) == 16
    before, after = steps.tensors(), resumed.tensors()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert len(resumed.take(16, 18)) == 2
