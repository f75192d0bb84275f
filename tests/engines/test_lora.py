"""Low-rank adapters: they train, are merged, and are written as peft reads them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.engines import on_deepspeed
from support.faults import losses, run_job
from support.processes import run_processes
from support.steps import start
from support.tiny import CONTEXT, make_packs, tiny_recipe

from emu3_megatron.checkpoints.state import load_state
from emu3_megatron.config import Recipe
from emu3_megatron.model import Inputs, SequenceLayout

pytestmark = pytest.mark.slow

TOKENS = torch.arange(CONTEXT)[None] % 256
STEPS = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack, a Hugging Face folder as BAAI's would be, and a run of adapters on it, exported."""
    folder = tmp_path_factory.mktemp("lora")
    make_packs(folder)
    base = {"steps": 2, "export": str(folder / "base")}
    train(tiny_recipe(folder / "tiny.pack", folder / "first", run=base, **on_deepspeed(stage=2)))
    train(recipe_of(folder, "run", export=str(folder / "merged")))
    return folder


def recipe_of(folder: Path, name: str, engine: Any = None, **run: Any) -> Recipe:
    run = {"steps": STEPS, "save_every": 4, "init_from": str(folder / "base"), **run}
    section = {"stage": 3, "lora": {"rank": 4, "alpha": 16}, **(engine or {})}
    return tiny_recipe(folder / "tiny.pack", folder / name, run=run, **on_deepspeed(**section))


def train(recipe: Recipe, ranks: int = 2) -> dict[int, float]:
    for end in run_job(recipe, ranks=ranks):
        assert end.code == 0, end.said
    return losses(recipe.run.dir)


def logits_of(path: Path, adapter: Path | None = None) -> torch.Tensor:
    from transformers import Emu3ForCausalLM

    model: Any = Emu3ForCausalLM.from_pretrained(path, dtype=torch.float32)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def unmerged_logits(recipe: Recipe) -> np.ndarray:
    """Those of the engine itself, resumed from the last checkpoint."""
    steps = start(recipe)
    steps.engine.start_from(recipe.run.init_from)
    checkpoint = recipe.run.dir / "checkpoints" / f"step-{STEPS:08d}"
    load_state(checkpoint, {"trainer": steps.trainer})
    layout = SequenceLayout.of_documents([[0, CONTEXT]])
    with steps.engine.decoder() as decoder:
        return decoder(Inputs(TOKENS, torch.arange(CONTEXT)[None], layout), "logits").numpy()


def test_the_loss_falls_and_the_base_stays(folder: Path):
    """With BAAI's script users saw a loss that did not fall (Emu3 issue 63)."""
    found = losses(folder / "run")

    assert found[STEPS] < found[1] - 0.1
    base, merged = logits_of(folder / "base"), logits_of(folder / "merged")
    assert not torch.allclose(merged, base, atol=1e-2)


def test_the_merged_folder_is_the_unmerged_model(folder: Path):
    (unmerged, _) = run_processes(unmerged_logits, 2, recipe_of(folder, "run"))

    merged = logits_of(folder / "merged").numpy()
    np.testing.assert_allclose(merged, unmerged, rtol=1e-5, atol=1e-5)


def test_peft_loads_the_adapters_on_the_base(folder: Path):
    with_adapters = logits_of(folder / "base", folder / "merged" / "adapter")

    expected = logits_of(folder / "merged")
    torch.testing.assert_close(with_adapters, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", [{"stage": 2}, {"stage": 3, "offload": "weights"}])
def test_a_run_of_adapters_goes_on_from_its_base(folder: Path, engine: dict[str, Any]):
    name = f"stopped {engine['stage']}"
    train(recipe_of(folder, name, engine={"stage": 3}, stop_after=4))

    resumed = train(recipe_of(folder, name, engine=engine), ranks=1)

    assert resumed == pytest.approx(losses(folder / "run"), abs=1e-5)


def test_adapters_on_other_weights_are_refused(folder: Path):
    train(recipe_of(folder, "moved", stop_after=4))
    (end, *_) = run_job(recipe_of(folder, "moved", init_from=str(folder / "first")), ranks=2)

    assert end.code == 2
    assert f"the adapters of this run stand on {folder / 'base'}" in end.said


def test_an_adapters_folder_names_its_matrices(folder: Path):
    config = json.loads(
        (folder / "merged" / "adapter" / "adapter_config.json").read_text(encoding="utf-8")
    )

    assert config["r"] == 4
    assert config["lora_alpha"] == 16
    assert set(config["target_modules"]) >= {"q_proj", "down_proj"}
