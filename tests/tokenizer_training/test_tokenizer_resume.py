"""Stop anywhere and resume: as if nothing had happened, in every tensor."""

import random

import pytest
import torch
from support.tokenizers import make_clips, make_photos, start_tokenizer, tokenizer_recipe

STEPS = 24
# Codes begin after step 6, the discriminators start at step 9 and are felt from step 12 on, codes
# restart after every second step.
MOMENTS = [6, 8, 11, 14]
SEEDED = sorted(random.Random(0).sample(range(1, STEPS - 1), 20))
AFTER = 2  # steps, before all is compared


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    photos, clips = make_photos(folder / "photos"), make_clips(folder / "clips")
    return tokenizer_recipe(
        folder,
        photos,
        run={"steps": STEPS},
        data={"clips": clips, "clip_frames": 4, "clip_fps": 8, "clip_share": 0.4, "flip": True},
        codebook={"plain_steps": 6},
        ema={"decay": 0.9},
        batch_norm_steps=20,
        adversarial={
            "start": 9, "warmup": 3, "layers": 1, "channels": 8, "adaptive": True, "lecam": 0.1,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def straight(recipe, mesh, tmp_path_factory):
    """A run without a stop: a checkpoint and what the trainer holds after each of its steps."""
    steps, folders, held = start_tokenizer(recipe, mesh), {}, {}
    for step in range(1, STEPS + 1):
        steps.take(step - 1, step)
        folders[step] = tmp_path_factory.mktemp(f"step-{step}")
        if step in (*MOMENTS, *SEEDED):
            steps.save(folders[step], step)
        held[step] = steps.tensors()
    return steps, folders, held


@pytest.mark.parametrize(
    "moment", [*MOMENTS, *(pytest.param(step, marks=pytest.mark.slow) for step in SEEDED)]
)
def test_resumed_is_straight_in_every_tensor(recipe, mesh, straight, moment):
    wanted, folders, held = straight
    resumed = start_tokenizer(recipe, mesh)
    assert resumed.load(folders[moment]) == moment

    results = resumed.take(moment, moment + AFTER)

    known = wanted.results[moment : moment + AFTER]
    assert [r.metrics for r in results] == [r.metrics for r in known]
    expected, found = held[moment + AFTER], resumed.tensors()
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_the_run_passes_through_all_that_can_be_lost(straight):
    """Else the tests above would show little."""
    steps, _, _ = straight
    names = steps.tensors().keys()
    assert {name.partition(".")[0] for name in names} == {
        "tokenizer", "ema", "discriminators", "lecam", "moments", "codebook", "last_layer_norms",
    }  # fmt: skip
    assert steps.trainer.networks.lecam.updates.min() > 0
    assert steps.trainer.last_layer_norms.min() > 0
    assert "psnr_without_codes_db" in steps.results[5].metrics
    assert "psnr_db" in steps.results[6].metrics
    assert "adversarial" not in steps.results[10].metrics
    assert "adversarial" in steps.results[11].metrics
