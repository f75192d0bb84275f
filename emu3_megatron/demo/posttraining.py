"""The demo's stages from the pre-trained model on: pictures one way, answers the other."""

import csv
import json
import statistics
from pathlib import Path

from emu3_megatron.demo.material import PHOTOS
from emu3_megatron.demo.pretraining import prepare_images, validation
from emu3_megatron.demo.views import HELD_OUT, POOL, VIEWS, WHAT, lay_out_dialogues, lay_out_views
from emu3_megatron.demo.work import Work
from emu3_megatron.media.images import load_image
from emu3_megatron.prepare.scores.colour import colourfulness

PICTURE, ANSWER = "picture.png", "answer.jsonl"
DRAWN, SHOWN = PHOTOS[1], "views-held-out/chelsea-0.png"
_PROMPTS, _SAMPLES = 6, 4  # prompts of a caption, samples of a prompt
_BEST = "images.select={columns: {colour: 1}, top: 0.2}"
_CAPTIONED = "packs=[{name: images, context: 704, kinds: [images], select: captioned}]"
_DIALOGUES = "packs=[{name: dialogues, context: 896, kinds: [dialogues]}]"


def quality(work: Work) -> None:
    """The most colourful of further views, codes alone."""
    out = work.out
    lay_out_views(out / "pool", POOL, seed=2)
    prepare_images(work, "pool", "data-quality", _BEST, _CAPTIONED)
    prepare_images(work, "views-held-out", "data-quality-held-out", _BEST, _CAPTIONED)
    work.emu3(
        *("train", "quality-tiny-cpu", f"run.dir={out / 'quality-run'}"),
        f"run.init_from={out / 'stage2-run'}",
        f"data.sources=[{{pack: {out / 'data-quality/packs/images.pack'}}}]",
        validation(out / "data-quality-held-out/packs/images.pack", every=10, batches=1),
        *("run.steps=30", "run.save_every=30", "batch.size=4", "batch.micro_size=4"),
        "optimizer.lr=3.0e-4",
    )


def preferences(work: Work) -> None:
    """Samples, the votes of a rule, pairs, the reference, DPO."""
    out = work.out
    prompts, samples, pairs = out / "prompts.jsonl", out / "samples", out / "pairs"
    _write_prompts(prompts)
    work.emu3(
        *("preferences", "sample", out / "quality-run", prompts, "--out", samples),
        *("--tokenizer", work.tokenizer, "--samples", str(_SAMPLES), "--batch", "120"),
        *("--guidance", "1", "--temperature", "0.4"),
    )
    vote(samples)
    work.emu3("preferences", "import", samples, samples / "rule.csv", "--column", "colour")
    work.emu3("preferences", "build", samples, "--out", pairs, "--margin", "1")
    work.emu3("pack", pairs, "--out", out / "pairs.pack", "--context", "704")
    recipe = (
        *("dpo-tiny-cpu", f"run.dir={out / 'preferences-run'}"),
        f"run.init_from={out / 'quality-run'}",
        f"data.sources=[{{pack: {out / 'pairs.pack'}}}]",
        *("data.context=704", "objective.nll=1"),
        f"objective.reference.folder={out / 'reference'}",
        *("batch.size=8", "run.steps=24", "run.save_every=24", "run.log_every=1"),
    )
    work.emu3("reference", *recipe)
    work.emu3("train", *recipe)


def _write_prompts(path: Path) -> None:
    """Each caption several times, with seeds of its own: a prompt gives one pair."""
    numbers = range(_PROMPTS * len(PHOTOS))
    captions = [PHOTOS[number % len(PHOTOS)].caption for number in numbers]
    rows = [
        {"prompt": caption, "height": 16, "width": 16, "seed": _SAMPLES * number}
        for number, caption in enumerate(captions)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def vote(samples: Path) -> None:
    """Write SAMPLES/rule.csv, the votes of a rule in the place of people: more colour is better.

    A score is how much more colour a picture has than the mean of its caption: a flower is not
    better than a cat.
    """
    found = {}
    for path in (samples / "media").glob("*.png"):
        found[path.stem] = colourfulness(load_image(path))
    with (samples / "rule.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["sample", "colour"])
        for sample, colour in sorted(found.items()):
            alike = [other for name, other in found.items() if _caption(name) == _caption(sample)]
            table.writerow([sample, f"{colour - statistics.mean(alike):.4f}"])


def _caption(sample: str) -> int:
    """The number of a sample's caption; samples are named by prompt-sample."""
    return int(sample.partition("-")[0]) % len(PHOTOS)


def image_to_text(work: Work) -> None:
    """Captions behind the views, and text; no loss on codes."""
    out = work.out
    packs = out / "data-views/packs"
    work.emu3(
        *("train", "image-to-text-tiny-cpu", f"run.dir={out / 'image-to-text-run'}"),
        *(f"run.init_from={out / 'stage2-run'}", *_MODEL, "data.context=704"),
        f"data.sources=[{{pack: {packs / 'understanding.pack'}, weight: 0.9}}, "
        f"{{pack: {packs / 'text.pack'}, weight: 0.1}}]",
        validation(out / "data-held-out/packs/understanding.pack", every=10, batches=3),
        *("run.steps=80", "run.save_every=80", "batch.size=4", "optimizer.lr=1.0e-3"),
    )


# The recipes of image-to-text and instruction tuning are for digits; this is the demo's model.
_MODEL = ("model.layers=2", "model.hidden=256", "model.ffn=768", "model.codes=512")


def instruct(work: Work) -> None:
    """Dialogues about the views, answers alone."""
    out = work.out
    for views, data, each in (
        ("views", "data-dialogues", VIEWS),
        ("views-held-out", "data-dialogues-held-out", HELD_OUT),
    ):
        lay_out_dialogues(out / views, each)
        work.emu3(
            *("prepare", "dialogues", "prepare-tiny-cpu", "--source", out / f"{views}.json"),
            *("--media", out / views, "--tokenizer", work.tokenizer, "--out", out / data),
            *("dialogues.min_area=16384", "dialogues.max_area=16384", _DIALOGUES),
        )
    work.emu3(
        *("train", "instruct-tiny-cpu", f"run.dir={out / 'instruct-run'}"),
        *(f"run.init_from={out / 'image-to-text-run'}", *_MODEL, "data.context=896"),
        f"data.sources=[{{pack: {out / 'data-dialogues/packs/dialogues.pack'}}}]",
        validation(out / "data-dialogues-held-out/packs/dialogues.pack", every=10, batches=3),
        *("run.steps=80", "run.save_every=80", "batch.size=4"),
    )


def export(work: Work) -> None:
    """To a folder that transformers loads, and back."""
    folder = work.out / "transformers"
    work.emu3(
        *("convert", "export", "--from", work.out / "instruct-run", "--to", folder),
        *("--tokenizer", work.tokenizer),
    )
    work.emu3("convert", "import", "--from", folder, "--to", work.out / "imported")


def generate(work: Work) -> None:
    """A picture by the model that went through every stage of drawing, an answer by the other."""
    tokenizer = ("--tokenizer", work.tokenizer)
    work.emu3(
        *("generate", "image", work.out / "preferences-run", DRAWN.caption, *tokenizer),
        *("--grid", "16x16", "--guidance", "1", "--temperature", "0.4"),
        *("--out", work.out / PICTURE),
    )
    work.emu3(
        *("generate", "dialogue", work.out / "instruct-run", WHAT, *tokenizer),
        *("--show", work.out / SHOWN, "--area", "16384", "--out", work.out / ANSWER),
    )
