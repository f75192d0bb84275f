"""Freezing, learning rates of their own, a moving average and a batch ramp: alone and at resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.processes import run_processes
from support.steps import losses_of, start
from support.tiny import make_packs, tiny_recipe

from emu3_megatron import parallel
from emu3_megatron.checkpoints.state import load_state
from emu3_megatron.config import Recipe
from emu3_megatron.errors import InputError
from emu3_megatron.interchange.averaging import write_average
from emu3_megatron.model.opening import open_decoder
from emu3_megatron.model.tensors import EMBEDDING, HEAD, named_tensors

FROZEN = ["embedding.*", "block.layers.0.*"]
OPTIONS = {
    "freeze": FROZEN,
    "multipliers": [{"parameters": "head.*", "lr": 0.1}],
    "average": {"decay": 0.5},
}
RAMP = {"size": 8, "micro_size": 2, "ramp": {"start": 4, "increment": 4, "sequences": 16}}
LAYOUTS = {
    "plain": (1, {}, "fp32"),
    "DP 2 distributed": (2, {"distributed_optimizer": True}, "bf16"),
    "TP 2 distributed": (2, {"tensor": 2, "distributed_optimizer": True}, "fp32"),
    "TP 2 x DP 2 distributed": (4, {"tensor": 2, "distributed_optimizer": True}, "bf16"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options")
    make_packs(folder)
    return folder


def recipe_of(folder: Path, **sections: Any) -> Recipe:
    return tiny_recipe(folder / "tiny.pack", folder, model={"dropout": 0.1}, **sections)


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    from megatron.core import dist_checkpointing

    found = dist_checkpointing.load_plain_tensors(str(checkpoint))
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def straight_and_stopped(recipe: Recipe, folder: Path) -> list[str]:
    """Six steps at once, and in two starts; what differs, of this rank."""
    steps = start(recipe)
    straight = losses_of(steps.take(0, 6))
    whole = tensors_of(steps.save(folder / "straight", 6))
    parallel.stop(keep_processes=True)
    steps = start(recipe)
    first = losses_of(steps.take(0, 3))
    halfway = steps.save(folder / "stopped", 3)
    parallel.stop(keep_processes=True)
    steps = start(recipe)
    load_state(halfway, {"trainer": steps.trainer, "data": steps.data})
    rest = losses_of(steps.take(3, 6))
    again = tensors_of(steps.save(folder / "stopped", 6))
    parallel.stop(keep_processes=True)
    assert any(name.startswith("average.") for name in whole)
    names = [name for name in whole if not torch.equal(whole[name], again[name])]
    return names if first + rest == straight else [f"losses {straight} {first + rest}"]


@pytest.mark.parametrize(
    "layout",
    [
        "plain",
        "DP 2 distributed",
        pytest.param("TP 2 distributed", marks=pytest.mark.slow),
        pytest.param("TP 2 x DP 2 distributed", marks=pytest.mark.slow),
    ],
)
def test_all_of_them_resume_bit_for_bit(folder: Path, tmp_path: Path, layout: str) -> None:
    ranks, sizes, precision = LAYOUTS[layout]
    recipe = recipe_of(folder, optimizer=OPTIONS, batch=RAMP, parallel=sizes, precision=precision)

    assert run_processes(straight_and_stopped, ranks, recipe, tmp_path) == [[]] * ranks


def weights_by_step(recipe: Recipe, count: int) -> list[dict[str, torch.Tensor]]:
    steps = start(recipe)
    copy = lambda: {name: p.detach().clone() for name, p in named_tensors(steps.engine.live)}
    found = [copy()]
    for step in range(count):
        steps.take(step, step + 1)
        found.append(copy())
    if steps.engine.average:
        found.append({n: p.data for n, p in steps.engine.average.state_dict().items()})
    parallel.stop(keep_processes=True)
    return found


def what_the_options_do(folder: Path) -> list[str]:
    without = weights_by_step(recipe_of(folder), 1)
    *steps, average = weights_by_step(recipe_of(folder, optimizer=OPTIONS), 3)
    moved = {name for name in steps[0] if not torch.equal(steps[0][name], steps[-1][name])}
    faults = []
    if moved != {name for name in steps[0] if name != EMBEDDING and ".layers.0." not in name}:
        faults.append(f"moved: {moved}")
    slow, fast = steps[1][HEAD] - steps[0][HEAD], without[1][HEAD] - without[0][HEAD]
    # But for the rounding of weights near 1, and gradients near Adam's epsilon: without the frozen
    # ones they are clipped less. A step is 1e-3.
    if not torch.allclose(slow, 0.1 * fast, atol=2e-6):
        faults.append(f"head: {(slow - 0.1 * fast).abs().max()}")
    expected = steps[0][HEAD]
    for weights in steps[1:]:
        expected = 0.5 * expected + 0.5 * weights[HEAD]
    if not torch.allclose(average[HEAD], expected, rtol=1e-6):
        faults.append("average")
    return faults


def test_frozen_weights_stay_the_head_is_slow_and_the_average_follows(folder: Path) -> None:
    assert run_processes(what_the_options_do, 1, folder) == [[]]


def losses_with_and_without_recompute(folder: Path) -> list[list[float]]:
    found = []
    for recompute in ("none", "full"):
        recipe = recipe_of(folder, optimizer={"freeze": ["embedding.*"]}, recompute=recompute)
        found.append(losses_of(start(recipe).take(0, 3)))
        parallel.stop(keep_processes=True)
    return found


def test_layers_behind_a_frozen_embedding_are_trained_when_they_are_recomputed(folder: Path):
    none, full = run_processes(losses_with_and_without_recompute, 1, folder)[0]

    assert none == full
    assert none[0] != none[2]


def thawed(folder: Path, checkpoints: Path) -> list[bool]:
    """Steps with frozen layers, then without: on from the checkpoint, in the other optimizer."""
    steps = start(recipe_of(folder, optimizer={"freeze": FROZEN}))
    steps.take(0, 2)
    checkpoint = steps.save(checkpoints, 2)
    parallel.stop(keep_processes=True)
    moved = []
    for distributed in (False, True):
        recipe = recipe_of(
            folder, precision="bf16", parallel={"distributed_optimizer": distributed}
        )
        steps = start(recipe)
        load_state(checkpoint, {"trainer": steps.trainer, "data": steps.data})
        before = {name: p.detach().clone() for name, p in named_tensors(steps.engine.live)}
        steps.take(2, 3)
        after = named_tensors(steps.engine.live)
        moved.append(all(not torch.equal(before[name], weight) for name, weight in after))
        steps.save(checkpoints, 3)
        parallel.stop(keep_processes=True)
    return moved


def test_what_was_frozen_may_be_trained_from_a_checkpoint_on(folder: Path, tmp_path: Path) -> None:
    assert run_processes(thawed, 1, folder, tmp_path)[0] == [True, True]


def averaged(recipe: Recipe, folder: Path) -> bool:
    """Whether the checkpoint that is made of the average opens with the average as its weights."""
    steps = start(recipe)
    steps.take(0, 2)
    steps.save(folder / "checkpoints", 2)
    places = steps.engine.average.state_dict()
    parallel.stop(keep_processes=True)
    mesh = parallel.start()
    write_average(folder / "checkpoints", folder / "average")
    decoder, _ = open_decoder(folder / "average", mesh)
    found = dict(named_tensors(decoder))
    return all(torch.equal(found[n], p.data.to(found[n].dtype)) for n, p in places.items())


def test_the_average_becomes_a_checkpoint_that_opens(folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(folder, optimizer=OPTIONS, precision="bf16")

    assert run_processes(averaged, 1, recipe, tmp_path) == [True]


@pytest.mark.parametrize(
    ("optimizer", "line"),
    [
        (
            {"freeze": ["embeding.*"]},
            "optimizer.freeze: no parameter is called 'embeding.*'; there",
        ),
        ({"freeze": ["*"]}, "optimizer.freeze: matches every parameter"),
        (
            {"multipliers": [{"parameters": "nose", "lr": 2}]},
            "optimizer.multipliers: no parameter is called 'nose'",
        ),
    ],
)
def test_a_pattern_that_names_nothing_is_refused(folder: Path, optimizer: Any, line: str) -> None:
    assert line in run_processes(refusal, 1, recipe_of(folder, optimizer=optimizer))[0]


def refusal(recipe: Recipe) -> str:
    with pytest.raises(InputError) as refused:
        start(recipe)
    return str(refused.value)
