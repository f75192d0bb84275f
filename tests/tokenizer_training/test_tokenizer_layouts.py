"""One, two and three processes train the same tokenizer, whatever samples each of them gets."""

from functools import cache

import numpy as np
import pytest
import torch
from support.processes import run_processes
from support.tokenizers import make_clips, make_photos, start_tokenizer, tokenizer_recipe

from emu3_megatron import parallel

PROCESSES = (1, 2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    make_photos(folder / "photos", sizes=[(32, 32), (48, 32), (32, 48)])
    make_clips(folder / "clips")
    (folder / "photos" / "broken.png").write_bytes(b"not a picture")
    return folder


def recipe_of(folder, steps):
    return tokenizer_recipe(
        folder,
        folder / "photos",
        run={"steps": steps},
        # Three samples a step: with three processes each has one, some have a broken file alone.
        batch={"size": 3, "pixels": 1500},
        data={"clips": folder / "clips", "clip_frames": 4, "clip_fps": 8, "clip_share": 0.3},
        codebook={"plain_steps": 6, "restart_after": 4},
        ema={"decay": 0.9},
        batch_norm_steps=12,
        adversarial={"start": 3, "warmup": 4, "layers": 1, "channels": 8, "adaptive": True},
    )


def trained(folder, steps, double):
    """What a rank holds after so many steps."""
    run = start_tokenizer(recipe_of(folder, steps), double=double)
    run.take(0, steps)
    found = {name: tensor.numpy() for name, tensor in run.tensors().items()}
    parallel.stop(keep_processes=True)
    return [result.metrics["loss"] for result in run.results], found


@cache
def on(folder, processes, steps, double):
    return run_processes(trained, processes, folder, steps, double)


def distance(one, other):
    """The greatest difference of floating point tensors, relative to the tensor's greatest.

    A bias before a norm of its channel alone has no effect: it starts at 0 and gets rounding as its
    gradient. So no scale is under a thousandth.
    """
    found = {}
    for name, values in one.items():
        if np.issubdtype(values.dtype, np.floating):
            scale = max(np.abs(values).max(initial=0), 1e-3)
            found[name] = np.abs(values - other[name]).max(initial=0) / scale
    return max(found.items(), key=lambda item: item[1])


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("steps", [16, pytest.param(50, marks=pytest.mark.slow)])
def test_in_fp64_all_is_the_same(folder, processes, steps):
    _, alone = on(folder, 1, steps, True)[0]
    for _, held in on(folder, processes, steps, True):
        weights = {n: t for n, t in alone.items() if n.startswith(("tokenizer", "ema", "discr"))}
        assert distance(weights, held)[1] < 1e-8, distance(weights, held)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_in_fp32_the_first_losses_are_the_same(folder, processes):
    alone, _ = on(folder, 1, 10, False)[0]
    for losses, _ in on(folder, processes, 10, False):
        assert losses == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("processes", [2, 3])
def test_ranks_hold_the_same_bits(folder, processes):
    first, *others = [held for _, held in on(folder, processes, 16, True)]
    for other in others:
        assert [name for name in first if not np.array_equal(first[name], other[name])] == []


def test_batch_norm_follows_the_samples_of_all_ranks(folder):
    _, alone = on(folder, 1, 16, True)[0]
    for _, held in on(folder, 3, 16, True):
        moved = {n: t for n, t in alone.items() if "running" in n and n.startswith("tokenizer")}
        assert len(moved) == 8
        assert distance(moved, held)[1] < 1e-8
    assert not np.allclose(alone["tokenizer.encoder.time_res_stack.0.norm1.running_mean"], 0)


def test_what_a_file_or_a_batch_is_cut_into_changes_nothing(folder, mesh):
    """Groups of one sample, and of as many as there are."""
    recipe = recipe_of(folder, 10)
    found = []
    for pixels in (1, 1 << 22):
        cut = recipe.model_copy(
            update={"batch": recipe.batch.model_copy(update={"pixels": pixels})}
        )
        run = start_tokenizer(cut, mesh, double=True)
        run.take(0, 10)
        found.append({n: t.numpy() for n, t in run.tensors().items() if n.startswith("tokenizer")})
    assert distance(*found)[1] < 1e-9
    assert torch.get_default_dtype() == torch.float32
