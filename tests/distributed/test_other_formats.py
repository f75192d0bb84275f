"""Resuming with another kind of optimizer, or in another precision."""

from pathlib import Path

import pytest
import torch
from support.processes import run_processes
from support.steps import losses, start
from support.tiny import make_packs, tiny_recipe

from emu3_megatron import parallel
from emu3_megatron.checkpoints.state import load_state
from emu3_megatron.config import Recipe

FORMATS = {
    "plain fp32": ({}, "fp32"),
    "plain bf16": ({}, "bf16"),
    "distributed fp32": ({"distributed_optimizer": True}, "fp32"),
    "distributed bf16": ({"distributed_optimizer": True}, "bf16"),
}
# Every format into every other: each pair of neighbours, once.
CIRCUIT = [0, 1, 0, 2, 0, 3, 1, 2, 1, 3, 2, 3, 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    make_packs(folder)
    return folder


def recipe_of(folder: Path, form: str) -> Recipe:
    layout, precision = FORMATS[form]
    return tiny_recipe(folder / "tiny.pack", folder, parallel=layout, precision=precision)


def in_turn(folder: Path) -> list[tuple[str, dict, str]]:
    """Two steps in the first format; then each loads what the one before saved, and saves it."""
    found, checkpoint = [], None
    for number, form in enumerate(list(FORMATS)[i] for i in CIRCUIT):
        steps = start(recipe_of(folder, form))
        if checkpoint:
            load_state(checkpoint, {"trainer": steps.trainer, "data": steps.data})
        else:
            steps.take(0, 2)
        checkpoint = steps.save(folder / f"{number}", 2)
        found.append((form, *_held_by(checkpoint)))
        parallel.stop(keep_processes=True)
    return found


def _held_by(checkpoint: Path) -> tuple[dict[str, torch.Tensor], str]:
    from megatron.core import dist_checkpointing

    tensors = dist_checkpointing.load_plain_tensors(str(checkpoint))
    tensors = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    return tensors, str(dist_checkpointing.load_common_state_dict(str(checkpoint)))


def compare(folder: Path) -> list[str]:
    """What differs from the first checkpoint, in words; of this rank."""
    (_, first, _), *others = in_turn(folder)
    weights = [name for name in first if not name.startswith("optimizer.")]
    return [
        f"{form}, checkpoint {number}: {fault}"
        for number, (form, tensors, common) in enumerate(others, start=1)
        for fault in _faults(first, weights, tensors, common)
    ]


def _faults(first: dict, weights: list[str], tensors: dict, common: str) -> list[str]:
    faults = []
    for name in weights:
        masters = [f"optimizer.state.{kind}.{name}" for kind in ("param", "fp32_param")]
        master = next((tensors[key] for key in masters if key in tensors), tensors[name])
        moments = [f"optimizer.state.{kind}.{name}" for kind in ("exp_avg", "exp_avg_sq")]
        same = all(torch.equal(tensors[key], first[key]) for key in moments)
        if not (torch.equal(master, first[name]) and same):
            faults.append(name)
        if not torch.equal(tensors[name], first[name].to(tensors[name].dtype)):
            faults.append(f"{name} is not its fp32 weights, rounded")
    if "'common_step': tensor(2.)" not in common and "'step': 2.0" not in common:
        faults.append("Adam's step")
    return faults


def test_every_format_loads_into_every_other_bit_for_bit(folder: Path) -> None:
    assert run_processes(compare, 2, folder) == [[], []]


def test_the_distributed_optimizer_goes_on_as_the_plain_one_would(folder: Path) -> None:
    plain, distributed = (recipe_of(folder, f"{kind} fp32") for kind in ("plain", "distributed"))
    straight = run_processes(losses, 2, plain, 4)[0]
    run_processes(losses, 2, plain, 2, None, folder / "plain")
    rest = run_processes(losses, 2, distributed, 4, folder / "plain")[0]

    assert rest == pytest.approx(straight[2:], rel=1e-6)
