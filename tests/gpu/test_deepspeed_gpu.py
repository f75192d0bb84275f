"""DeepSpeed on one GPU in bf16: the losses of Megatron. Left out where it is not installed."""

from pathlib import Path
from typing import Any

import pytest
from support.engines import losses_of_all, on_deepspeed
from support.processes import run_processes
from support.tiny import make_packs, tiny_recipe

pytestmark = pytest.mark.gpu
pytest.importorskip("deepspeed")
pytest.importorskip("peft")

STEPS = 5


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_packs(tmp_path_factory.mktemp("packs"))


def losses(pack: Path, *engines: dict[str, Any], **sections: Any) -> list[list[float]]:
    recipes = [
        tiny_recipe(pack, Path("run"), precision="bf16", **engine, **sections) for engine in engines
    ]
    return run_processes(losses_of_all, 1, recipes, STEPS)[0]


def test_losses_are_those_of_megatron(pack: Path) -> None:
    stages = [on_deepspeed(stage=stage) for stage in (1, 2, 3)]
    expected, *found = losses(pack, {}, *stages, on_deepspeed(stage=3, offload="weights"))

    for one in found:
        assert one == pytest.approx(expected, rel=5e-3)
    assert expected[-1] < 0.95 * expected[0]


def test_adapters_learn_alike_with_activations_computed_again(pack: Path) -> None:
    engine = on_deepspeed(stage=2, lora={"rank": 8})
    (kept,), (again,) = losses(pack, engine), losses(pack, engine, recompute="full")

    assert again == pytest.approx(kept, rel=1e-3)
    assert kept[-1] < kept[0]
