"""Runs the demo: tokenizer, shards, packs, decoder, images from captions, report.

Every step is a command of `emu3` or the function behind it; the decoder trains under torchrun
with two processes that share each of its layers (tensor parallel 2).
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from emu3_megatron import parallel
from emu3_megatron.config import Recipe, load_recipe
from emu3_megatron.config.load import find_recipe
from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.config.tokenizer import TokenizerRecipe
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.demo.material import PHOTOS, lay_out
from emu3_megatron.demo.report import Generated, Trained, mean_psnr, read_metrics, write_report
from emu3_megatron.errors import InputError
from emu3_megatron.files import write_json
from emu3_megatron.generation.answers import describe
from emu3_megatron.generation.images import VisionPrompt, draw
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Vision, parse
from emu3_megatron.model.opening import open_decoder
from emu3_megatron.prepare.pipeline import manifest_vocabulary, prepare, summary
from emu3_megatron.tokenizer_training.trainer import train_tokenizer
from emu3_megatron.vision.tokenizer import VisionTokenizer

RECIPE = "stage1-tiny-cpu"
AREA = 128 * 128
# The likeliest token each time: what the decoder has learnt by heart, nothing drawn by lot.
GREEDY = SamplingSettings(guidance=1.0, temperature=0.0)


def run_demo(out: Path) -> None:
    """Run every stage, and leave report.html and summary.json in `out`.

    A second run in the same folder begins anew.
    """
    started = time.perf_counter()
    for name in ("photos", "clips", "data", "tokenizer-run", "decoder-run"):
        shutil.rmtree(out / name, ignore_errors=True)
    _say(f"1/5 {len(PHOTOS)} photos and a clip with captions → {out}")
    lay_out(out / "photos", out / "clips", AREA)
    _say("2/5 the vision tokenizer learns to code them")
    tokenizer = _train_tokenizer(out)
    _say("3/5 photos and clip become documents, shards and packs")
    data = _prepare(out)
    _say("4/5 the decoder learns the packs: torchrun, 2 processes, stopped halfway and resumed")
    _train_decoder(out, data)
    _say("5/5 images from captions, a caption from an image, a clip from its beginning")
    made = _generate(out, data)
    summary = _summary(out, tokenizer, made)
    summary["seconds"] = round(time.perf_counter() - started, 1)
    write_json(out / "summary.json", summary)
    write_report(out, tokenizer, made, summary, AREA)
    print(json.dumps(summary, indent=2))
    print(f"open {out / 'report.html'}")


def _say(line: str) -> None:
    print(f"\n── {line}", flush=True)


def _train_tokenizer(out: Path) -> VisionTokenizer:
    overrides = [f"data.images={out / 'photos'}", f"data.clips={out / 'clips'}"]
    recipe = load_recipe(TokenizerRecipe, "tokenizer-tiny-cpu", overrides)
    return train_tokenizer(recipe, out / "tokenizer-run")


def _prepare(out: Path) -> dict[str, Any]:
    """Shards and packs in `out`/data, and their manifest."""
    overrides = [
        f"out={out / 'data'}",
        f"images.source={out / 'photos'}",
        f"clips.source={out / 'clips'}",
        f"tokenizer={out / 'tokenizer-run' / 'tokenizer'}",
        "strict=true",
    ]
    recipe = load_recipe(PrepareRecipe, "prepare-tiny-cpu", overrides)
    manifest = prepare(recipe, recipe.kinds)
    print("\n".join(summary(manifest)))
    return manifest


def _train_decoder(out: Path, data: dict[str, Any]) -> None:
    """Half of the steps, then the other half from the checkpoint, in new processes."""
    recipe = _write_recipe(out, data)
    _torchrun(out, "parallel.tensor=2", f"run.stop_after={recipe.run.steps // 2}")
    _torchrun(out, "parallel.tensor=2")


def _write_recipe(out: Path, data: dict[str, Any]) -> Recipe:
    """The shipped tiny recipe, on this folder's data, with two of its captions to draw."""
    values = yaml.safe_load(find_recipe(RECIPE).read_text())
    values["run"]["dir"] = str(out / "decoder-run")
    (pack,) = (p for p in data["packs"] if p["context"] == values["data"]["context"])
    values["data"]["sources"] = [{"pack": str(out / "data" / pack["path"])}]
    trained = _trained(out, data, "images")[:2]
    values["sample"] = {
        "every": values["run"]["steps"] // 2,
        "tokenizer": str(out / "tokenizer-run" / "tokenizer"),
        # Photos learned by heart need no guidance, and 3 makes noise of them: of two tokens that
        # cannot follow it prefers the one that is even less likely without a caption.
        "guidance": 1.0,
        "prompts": [
            {"caption": t.caption, "height": t.vision.meta.height, "width": t.vision.meta.width}
            for t in trained
        ],
    }
    path = out / "recipe.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return load_recipe(Recipe, path)


def _torchrun(out: Path, *overrides: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "emu3_megatron", "train", str(out / "recipe.yaml"), *overrides]
    print("$ torchrun", *command[3:], flush=True)
    if subprocess.run(command, check=False).returncode:
        raise InputError("the decoder's training failed; its own line is above")


def _trained(out: Path, data: dict[str, Any], kind: str) -> list[Trained]:
    """The documents that begin with their caption."""
    vocabulary = manifest_vocabulary(data)
    (shard,) = data["kinds"][kind]["shards"]
    store = TokenStore(out / "data" / "shards" / shard["name"], vocabulary)
    documents = [parse(vocabulary, store.document(i).tokens) for i in range(len(store))]
    return [
        Trained(parts[0], parts[1])
        for parts in documents
        if isinstance(parts[0], str) and isinstance(parts[1], Vision)
    ]


def _generate(out: Path, data: dict[str, Any]) -> Generated:
    """Everything greedy, from the last checkpoint, on one process."""
    vocabulary = manifest_vocabulary(data)
    mesh = parallel.start()
    mesh.seed(0, 0)
    decoder, _ = open_decoder(out / "decoder-run", mesh)
    images = _trained(out, data, "images")
    prompts = [VisionPrompt(t.caption, t.vision.meta) for t in images]
    drawn = draw(decoder, vocabulary, prompts, GREEDY, progress=True)
    captions = describe(decoder, vocabulary, [t.vision for t in images], GREEDY, max_tokens=80)
    clip = _trained(out, data, "clips")[0]
    beginning = clip.vision.codes[: clip.vision.meta.frames // 2]
    prompt = VisionPrompt(clip.caption, clip.vision.meta, first_frames=beginning)
    continued = draw(decoder, vocabulary, [prompt], GREEDY)[0]
    parallel.stop()
    return Generated(images, drawn, captions, clip, continued)


def _summary(out: Path, tokenizer: VisionTokenizer, made: Generated) -> dict[str, float]:
    rows = read_metrics(out / "decoder-run" / "metrics.jsonl")
    matches = [np.mean(d == t.vision.codes) for d, t in zip(made.drawn, made.images, strict=True)]
    return {
        "tokenizer_psnr_db": round(mean_psnr(out / "photos", tokenizer, AREA), 2),
        "loss_first": rows[0]["loss"],
        "loss_last": rows[-1]["loss"],
        "code_match": round(float(np.mean(matches)), 4),
        "captions": len(made.images),
    }
