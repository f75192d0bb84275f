"""The shipped prepare recipes make what the shipped stages read; they train on it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from support.processes import run_processes

from emu3_megatron.cli.train import run_training
from emu3_megatron.config import Recipe, load_recipe
from emu3_megatron.config.load import read_recipe
from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.media.writers import write_clip
from emu3_megatron.prepare.checking import check_prepared
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.tables import read_table
from emu3_megatron.vision.tokenizer import VisionTokenizer

MADE_BY = {
    "stage1-8b-h100x64": "prepare-8b",
    "stage2-8b-h100x64": "prepare-8b",
    "quality-8b-h100x64": "prepare-quality-8b",
    "image-to-text-8b-h100x64": "prepare-8b",
    "instruct-8b-h100x8": "prepare-dialogues-8b",
    "image-to-text-tiny-cpu": "prepare-dialogues-tiny-cpu",
    "instruct-tiny-cpu": "prepare-dialogues-tiny-cpu",
    "stage1-tiny-cpu": "prepare-tiny-cpu",
    "stage2-tiny-cpu": "prepare-tiny-cpu",
}
CONTEXTS = {5120: 256, 131_072: 512}


@pytest.mark.parametrize("stage", MADE_BY)
def test_a_stage_reads_what_its_prepare_recipe_makes(stage):
    recipe = load_recipe(Recipe, stage)
    prepared = load_recipe(PrepareRecipe, MADE_BY[stage])
    made = {prepared.out / "packs" / p.folder_name: p.context for p in prepared.packs}

    assert recipe.data.sources
    for source in recipe.data.sources:
        assert made[source.pack] == recipe.data.context


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Photos, a video and texts, each with its caption, under the names that the recipe has."""
    for name in ("photos", "videos", "texts"):
        (tmp_path / name).mkdir()
    random = np.random.default_rng(0)
    for i in range(12):
        pixels = random.integers(0, 256, (6, 8, 3), np.uint8)
        photo = Image.fromarray(pixels).resize((64, 48), Image.Resampling.NEAREST)
        photo.save(tmp_path / "photos" / f"{i}.png")
        (tmp_path / "photos" / f"{i}.txt").write_text(f"photo {i}", encoding="utf-8")
        (tmp_path / "texts" / f"{i}.txt").write_text(f"text {i} " * 10, encoding="utf-8")
    scores = {"file": [f"{i}.png" for i in range(12)], "hpsv2": [i % 4 for i in range(12)]}
    scores |= {"mps": list(range(12)), "aesthetic": [float(-abs(i - 5)) for i in range(12)]}
    pq.write_table(pa.table(scores), tmp_path / "photos-scores.parquet")
    write_clip(tmp_path / "videos" / "noise.mp4", torch.rand(16, 3, 48, 64) * 2 - 1, fps=8)
    (tmp_path / "videos" / "noise.txt").write_text("noise that flickers", encoding="utf-8")
    network = TokenizerNetwork(preset="tiny")
    VisionTokenizer(network).eval().save(tmp_path / "runs" / "tokenizer")
    return tmp_path


def prepare_small(name: str, folder: Path) -> Path:
    """What a shipped recipe says of selection and packs, on small photos, with short contexts."""
    values = read_recipe(name) | {"model": "emu3-tiny"}
    for key in ("out", "tokenizer"):
        values[key] = str(folder / values[key])
    loose = {"min_quality": 0, "ocr": False, "area": 1536, "min_side": 32}
    values["images"] |= {**loose, "near_duplicate_bits": -1}
    values["clips"] |= {**loose, "min_seconds": 0, "min_flow": 0, "max_flow": 99}
    if select := values["images"].get("select"):
        select["table"] = str(folder / select["table"])
    for kind in {"images", "clips", "text"} & values.keys():
        values[kind]["source"] = str(folder / values[kind]["source"])
    for packs in values["packs"]:
        packs["context"] = CONTEXTS[packs["context"]]
    recipe = PrepareRecipe.model_validate({**values, "run": {"executor": "local"}})
    prepare(recipe, recipe.kinds)
    return recipe.out


def small_stage(stage: str, folder: Path) -> Recipe:
    """A shipped stage with the tiny decoder, on one process."""
    values = read_recipe(stage)
    values["run"] |= {"dir": str(folder / values["run"]["dir"]), "steps": 2, "log_every": 1}
    if "init_from" in values["run"]:
        values["run"]["init_from"] = str(folder / values["run"]["init_from"])
    values["data"] |= {"context": CONTEXTS[values["data"]["context"]], "workers": 0}
    for source in values["data"]["sources"]:
        source["pack"] = str(folder / source["pack"])
    small: dict[str, Any] = {
        "model": {"preset": "emu3-tiny", "hidden": 32, "ffn": 64},
        "batch": {"size": 4, "micro_size": 2},
        "parallel": {},
        "precision": "fp32",
        "optimizer": values["optimizer"] | {"schedule": {"warmup_steps": 1}},
    }
    path = folder / f"{stage}.yaml"
    path.write_text(yaml.safe_dump(values | small), encoding="utf-8")
    return load_recipe(Recipe, path)


def train_small(stage: str, folder: Path) -> list[dict[str, float]]:
    """The rows of metrics of a short training."""
    recipe = small_stage(stage, folder)
    run_processes(run_training, 1, recipe)
    return [json.loads(row) for row in (recipe.run.dir / "metrics.jsonl").open(encoding="utf-8")]


def test_all_stages_train_from_what_their_recipes_prepare(raw):
    assert "6 folders of packs" in check_prepared(prepare_small("prepare-8b", raw), deep=True)
    for stage in ("stage1-8b-h100x64", "stage2-8b-h100x64"):
        rows = train_small(stage, raw)
        assert [row["step"] for row in rows] == [1, 2]
        assert all(row["tokens_text"] > 0 for row in rows)

    best = prepare_small("prepare-quality-8b", raw)
    assert "2 folders of packs" in check_prepared(best, deep=True)
    kept = [row["source"] for row in read_table(best / "images.parquet") if row["kept"]]
    assert kept == ["11.png", "7.png"], "the best tenth of twelve"
    rows = train_small("quality-8b-h100x64", raw)
    for row in rows:
        assert row["loss"] == pytest.approx(row["nll_code"]), "codes alone are trained"
