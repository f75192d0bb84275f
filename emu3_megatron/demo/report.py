"""Writes the demo's report: photos, what the tokenizer keeps, what the decoder draws, curves."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from emu3_megatron import pages
from emu3_megatron.files import replacing
from emu3_megatron.grammar import Vision
from emu3_megatron.media.images import (
    load_image,
    read_image,
    resize_to_area,
    to_image,
    to_pixels,
)
from emu3_megatron.vision.tokenizer import VisionTokenizer

_LEAD = (
    "Photos were coded by a small vision tokenizer, laid out as documents, packed, and learnt by a "
    "small decoder in two processes (tensor parallel 2). What the decoder made is greedy: the "
    "likeliest token each time."
)


@dataclass(frozen=True)
class Trained:
    """A document that the decoder was trained on, taken apart again."""

    caption: str
    vision: Vision


@dataclass(frozen=True)
class Generated:
    """What came out, beside what went in.

    Attributes:
        images: the trained images, in the order of their documents.
        drawn: codes generated from each caption, [1, h, w].
        captions: text generated from each image.
        clip: the trained clip.
        continued: codes [f, h, w]; the first half of its frames was given.
    """

    images: list[Trained]
    drawn: list[np.ndarray]
    captions: list[str]
    clip: Trained
    continued: np.ndarray


def read_metrics(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def mean_psnr(photos: Path, tokenizer: VisionTokenizer, area: int) -> float:
    """Mean over photos of 10 log10(1 / mean squared error), pixels in 0..1, in dB."""
    return float(np.mean([_psnr(path, tokenizer, area) for path in sorted(photos.glob("*.png"))]))


def _psnr(path: Path, tokenizer: VisionTokenizer, area: int) -> float:
    pixels = to_pixels(resize_to_area(load_image(path), area))[None]
    back = tokenizer.decode_images(tokenizer.encode_images(pixels)).clamp(-1, 1)
    error = ((pixels - back) / 2).square().mean().item()
    return 10 * math.log10(1 / error)


def write_report(
    out: Path, tokenizer: VisionTokenizer, made: Generated, summary: dict[str, float], area: int
) -> None:
    """Write `report.html`, one file that needs nothing beside it."""
    blocks = [
        pages.paragraph(_LEAD),
        pages.table(["measure", "value"], [[name, f"{v:g}"] for name, v in summary.items()]),
        pages.heading("Images from their captions"),
        _images(out / "photos", tokenizer, made, area),
        pages.heading("The clip, continued"),
        _clip(tokenizer, made),
        pages.heading("Drawn while training"),
        _samples(out / "decoder-run" / "samples"),
        pages.heading("Curves"),
        _curves(out),
    ]
    with replacing(out / "report.html") as beside:
        beside.write_text(pages.page("emu3-megatron: the demo", blocks))


def _images(photos: Path, tokenizer: VisionTokenizer, made: Generated, area: int) -> pages.Html:
    rows = []
    by_caption = {path.read_text().strip(): path for path in photos.glob("*.txt")}
    for trained, codes, said in zip(made.images, made.drawn, made.captions, strict=True):
        photo = load_image(by_caption[trained.caption].with_suffix(".png"))
        match = float(np.mean(codes == trained.vision.codes))
        rows.append(
            [
                pages.image(resize_to_area(photo, area)),
                pages.image(_decode(tokenizer, trained.vision.codes)),
                pages.image(_decode(tokenizer, codes)),
                trained.caption,
                f"{match:.1%}",
                said,
            ]
        )
    heads = ["photo", "tokenizer", "decoder", "caption given", "codes equal", "caption generated"]
    return pages.table(heads, rows)


def _clip(tokenizer: VisionTokenizer, made: Generated) -> pages.Html:
    meta = made.clip.vision.meta
    given = meta.frames // 2
    match = float(np.mean(made.continued[given:] == made.clip.vision.codes[given:]))
    row = [
        _animation(tokenizer, made.clip.vision.codes, meta.fps or 8),
        _animation(tokenizer, made.continued, meta.fps or 8),
        made.clip.caption,
        f"{match:.1%}",
    ]
    first = f"first {given} of {meta.frames} latent frames given, the rest drawn"
    return pages.table(["tokenizer", first, "caption", "codes equal in the rest"], [row])


def _samples(folder: Path) -> pages.Html:
    rows = [
        [step.name, *(pages.image(read_image(p).image) for p in sorted(step.glob("*.png")))]
        for step in sorted(folder.glob("step-*"))
    ]
    return pages.table([], rows)


def _curves(out: Path) -> pages.Html:
    decoder = read_metrics(out / "decoder-run" / "metrics.jsonl")
    tokenizer = read_metrics(out / "tokenizer-run" / "metrics.jsonl")
    return pages.side_by_side(
        [
            _curve("decoder: loss", decoder, "loss"),
            _curve("decoder: accuracy on codes", decoder, "accuracy_code"),
            _curve("tokenizer: PSNR in dB", tokenizer, "psnr_db"),
        ]
    )


def _curve(title: str, rows: Sequence[dict[str, Any]], name: str) -> pages.Html:
    """One measure over steps."""
    return pages.curve(title, [(row["step"], row[name]) for row in rows if name in row], "step")


def _decode(tokenizer: VisionTokenizer, codes_fhw: np.ndarray) -> Image.Image:
    """An image, [1, h, w] codes."""
    return to_image(tokenizer.decode_images(torch.from_numpy(codes_fhw))[0])


def _animation(tokenizer: VisionTokenizer, codes_fhw: np.ndarray, fps: float) -> pages.Html:
    """A clip, [f, h, w] codes."""
    pixels_tchw = tokenizer.decode_clips(torch.from_numpy(codes_fhw)[None])[0]
    return pages.animation([to_image(frame) for frame in pixels_tchw], fps)
