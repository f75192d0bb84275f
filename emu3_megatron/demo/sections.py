"""The parts of the demo's page on its first stages: photos, tokenizer, packs, stage 1."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from emu3_megatron import pages
from emu3_megatron.demo.documents import Trained
from emu3_megatron.demo.pretraining import AREA
from emu3_megatron.demo.results import MODELS, Generated, Results
from emu3_megatron.grammar import Vision
from emu3_megatron.media.images import load_image, read_image, resize_to_area, to_image
from emu3_megatron.prepare.workspace import read_manifest
from emu3_megatron.vision.tokenizer import VisionTokenizer


@dataclass(frozen=True)
class Section:
    """What the page shows of a stage.

    Attributes:
        measure, before, after: a figure that says what the stage changed; before may be empty.
        blocks: all else.
    """

    measure: str
    before: str
    after: str
    blocks: Sequence[pages.Html]


def material(results: Results, tokenizer: VisionTokenizer) -> Section:
    cards = [
        pages.card([pages.image(_photo(path))], [path.read_text(encoding="utf-8").strip()])
        for path in sorted((results.out / "photos").glob("*.txt"))
    ]
    return Section("material", "", f"{len(cards)} photos, one clip", [pages.side_by_side(cards)])


def _photo(caption: Path) -> Image.Image:
    return resize_to_area(load_image(caption.with_suffix(".png")), AREA)


def vision_tokenizer(results: Results, tokenizer: VisionTokenizer) -> Section:
    rows = read_metrics(results.out / "tokenizer-run")
    first = next(row["psnr_db"] for row in rows if "psnr_db" in row)
    cards = [
        pages.card([pages.image(as_image(tokenizer, t.vision.codes))], [t.caption])
        for t in results.first.images
    ]
    note = (
        "The photos above after they became codes, each one of 512, and pictures again. No later "
        "stage can draw more detail than this."
    )
    return Section(
        "likeness of photos after coding, PSNR",
        f"{first:.1f} dB in its first steps",
        f"{results.tokenizer_psnr_db:.1f} dB",
        [
            pages.paragraph(note),
            pages.side_by_side(cards),
            pages.side_by_side([curve("PSNR of what it is trained on, dB", rows, "psnr_db")]),
        ],
    )


def prepare(results: Results, tokenizer: VisionTokenizer) -> Section:
    manifest = read_manifest(results.out / "data") or {}
    documents = [
        [
            kind,
            f"{found['kept']} of {found['found']}",
            str(shard["documents"]),
            f"{shard['tokens']:,}",
        ]
        for kind, found in manifest["kinds"].items()
        for shard in found["shards"]
    ]
    packs = [
        [pack["path"], f"{pack['context']:,}", str(pack["packs"]), f"{pack['fill']:.0%}"]
        for pack in manifest["packs"]
    ]
    tokens = sum(shard["tokens"] for k in manifest["kinds"].values() for shard in k["shards"])
    return Section(
        "tokens to learn from",
        "",
        f"{tokens:,}",
        [
            pages.paragraph("Each photo gives two documents, its caption before it and behind it:"),
            pages.code(_layout(results.first.images[0])),
            pages.table(["kind", "kept", "documents", "tokens"], documents),
            pages.table(["pack", "tokens a sequence", "sequences", "full"], packs),
        ],
    )


def _layout(picture: Trained) -> str:
    """How a document is laid out, with the first codes of the first two rows."""
    lines = [" ".join(map(str, row[:6])) + " … EOL" for row in picture.vision.codes[0][:2]]
    return f"BOS {picture.caption} BOI {picture.vision.meta} IMG\n" + "\n".join(
        [*lines, "…", "EOF EOI EOS"]
    )


def stage_1(results: Results, tokenizer: VisionTokenizer) -> Section:
    run = results.out / MODELS["stage-1"]
    rows = read_metrics(run)
    note = (
        "What the decoder made is greedy: the likeliest token each time. It knows these ten photos "
        "by heart, and nothing else: ten photos show that every part works, not that a model "
        "understands pictures."
    )
    return Section(
        "loss, nats a token",
        f"{rows[0]['loss']:.2f}",
        f"{rows[-1]['loss']:.2f}",
        [
            pages.paragraph(note),
            pages.side_by_side(
                [
                    curve("loss", rows, "loss"),
                    curve("accuracy on codes", rows, "accuracy_code"),
                ]
            ),
            pages.heading("Pictures from their captions, captions from their pictures", 3),
            _images(results, tokenizer),
            pages.heading("The clip, continued", 3),
            _clip(results.first, tokenizer),
            pages.heading("Drawn by lot while training", 3),
            _samples(run / "samples"),
        ],
    )


def _images(results: Results, tokenizer: VisionTokenizer) -> pages.Html:
    made, by_caption = results.first, {}
    for path in (results.out / "photos").glob("*.txt"):
        by_caption[path.read_text(encoding="utf-8").strip()] = path
    rows = [
        [
            pages.image(_photo(by_caption[trained.caption])),
            pages.image(as_image(tokenizer, trained.vision.codes)),
            pages.image(as_image(tokenizer, codes)),
            trained.caption,
            f"{equal(codes, trained.vision.codes):.1%}",
            said,
        ]
        for trained, codes, said in zip(made.images, made.drawn, made.captions, strict=True)
    ]
    heads = ["photo", "tokenizer", "decoder", "caption given", "codes equal", "caption generated"]
    return pages.table(heads, rows)


def _clip(made: Generated, tokenizer: VisionTokenizer) -> pages.Html:
    meta = made.clip.vision.meta
    given = meta.frames // 2
    row = [
        animation(tokenizer, made.clip.vision),
        animation(tokenizer, Vision(meta, made.continued)),
        made.clip.caption,
        f"{equal(made.continued[given:], made.clip.vision.codes[given:]):.1%}",
    ]
    first = f"first {given} of {meta.frames} latent frames given, the rest drawn"
    return pages.table(["tokenizer", first, "caption", "codes equal in the rest"], [row])


def _samples(folder: Path) -> pages.Html:
    rows = [
        [step.name, *(pages.image(read_image(p).image) for p in sorted(step.glob("*.png")))]
        for step in sorted(folder.glob("step-*"))
    ]
    return pages.table([], rows)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def curve(title: str, rows: Sequence[dict[str, Any]], name: str) -> pages.Html:
    """One measure over steps."""
    return pages.curve(
        title, [(row["step"], round(row[name], 4)) for row in rows if name in row], "step"
    )


def equal(codes: np.ndarray, others: np.ndarray) -> float:
    """Share of equal codes."""
    return float(np.mean(codes == others))


def as_image(tokenizer: VisionTokenizer, codes_fhw: np.ndarray) -> Image.Image:
    """An image, [1, h, w] codes."""
    return to_image(tokenizer.decode_images(torch.from_numpy(codes_fhw))[0])


def animation(tokenizer: VisionTokenizer, clip: Vision) -> pages.Html:
    pixels_tchw = tokenizer.decode_clips(torch.from_numpy(clip.codes)[None])[0]
    return pages.animation([to_image(frame) for frame in pixels_tchw], clip.meta.fps or 8)
