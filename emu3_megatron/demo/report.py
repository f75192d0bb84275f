"""The demo's report: what went in, what the tokenizer keeps, what the decoder draws, and curves."""

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

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
    sections = [
        _table(["measure", "value"], [[k, f"{v:g}"] for k, v in summary.items()]),
        "<h2>Images from their captions</h2>",
        _images(out / "photos", tokenizer, made, area),
        "<h2>The clip, continued</h2>",
        _clip(tokenizer, made),
        "<h2>Drawn while training</h2>",
        _samples(out / "decoder-run" / "samples"),
        "<h2>Curves</h2>",
        _curves(out),
    ]
    page = _PAGE.format(body="\n".join(sections))
    with replacing(out / "report.html") as beside:
        beside.write_text(page)


def _images(photos: Path, tokenizer: VisionTokenizer, made: Generated, area: int) -> str:
    rows = []
    by_caption = {path.read_text().strip(): path for path in photos.glob("*.txt")}
    for trained, codes, said in zip(made.images, made.drawn, made.captions, strict=True):
        photo = load_image(by_caption[trained.caption].with_suffix(".png"))
        match = float(np.mean(codes == trained.vision.codes))
        rows.append(
            [
                _image(resize_to_area(photo, area)),
                _image(_decode(tokenizer, trained.vision.codes)),
                _image(_decode(tokenizer, codes)),
                html.escape(trained.caption),
                f"{match:.1%}",
                html.escape(said),
            ]
        )
    heads = ["photo", "tokenizer", "decoder", "caption given", "codes equal", "caption generated"]
    return _table(heads, rows)


def _clip(tokenizer: VisionTokenizer, made: Generated) -> str:
    meta = made.clip.vision.meta
    given = meta.frames // 2
    match = float(np.mean(made.continued[given:] == made.clip.vision.codes[given:]))
    row = [
        _animation(tokenizer, made.clip.vision.codes, meta.fps or 8),
        _animation(tokenizer, made.continued, meta.fps or 8),
        html.escape(made.clip.caption),
        f"{match:.1%}",
    ]
    first = f"first {given} of {meta.frames} latent frames given, the rest drawn"
    return _table(["tokenizer", first, "caption", "codes equal in the rest"], [row])


def _samples(folder: Path) -> str:
    rows = [
        [step.name, *(_image(read_image(path).image) for path in sorted(step.glob("*.png")))]
        for step in sorted(folder.glob("step-*"))
    ]
    return _table([], rows)


def _curves(out: Path) -> str:
    decoder = read_metrics(out / "decoder-run" / "metrics.jsonl")
    tokenizer = read_metrics(out / "tokenizer-run" / "metrics.jsonl")
    return "".join(
        [
            _curve("decoder: loss", decoder, "loss"),
            _curve("decoder: accuracy on codes", decoder, "accuracy_code"),
            _curve("tokenizer: PSNR in dB", tokenizer, "psnr_db"),
        ]
    )


def _curve(title: str, rows: Sequence[dict[str, Any]], name: str) -> str:
    """A line chart of one measure over steps, as SVG."""
    points = [(row["step"], row[name]) for row in rows if name in row]
    width, height = 360, 180
    low, high = min(y for _, y in points), max(y for _, y in points)
    last = points[-1][0]
    path = " ".join(
        f"{x / last * width:.1f},{height - (y - low) / ((high - low) or 1) * height:.1f}"
        for x, y in points
    )
    return (
        f"<figure><figcaption>{title}: {points[0][1]:.3g} → {points[-1][1]:.3g} "
        f"in {last:,} steps</figcaption>"
        f'<svg viewBox="-44 -8 {width + 60} {height + 30}" width="{width + 60}">'
        f'<rect width="{width}" height="{height}" class="frame"/>'
        f'<polyline points="{path}"/>'
        f'<text x="-6" y="10" text-anchor="end">{high:.3g}</text>'
        f'<text x="-6" y="{height}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{width}" y="{height + 16}" text-anchor="end">step {last:,}</text></svg></figure>'
    )


def _decode(tokenizer: VisionTokenizer, codes_fhw: np.ndarray) -> Image.Image:
    """An image, [1, h, w] codes."""
    return to_image(tokenizer.decode_images(torch.from_numpy(codes_fhw))[0])


def _image(image: Image.Image) -> str:
    return _embed(image, "PNG")


def _animation(tokenizer: VisionTokenizer, codes_fhw: np.ndarray, fps: float) -> str:
    pixels_tchw = tokenizer.decode_clips(torch.from_numpy(codes_fhw)[None])[0]
    first, *rest = (to_image(frame) for frame in pixels_tchw)
    return _embed(
        first, "GIF", save_all=True, append_images=rest, duration=round(1000 / fps), loop=0
    )


def _embed(image: Image.Image, kind: str, **settings: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/{kind.lower()};base64,{data}" width="{image.width}">'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>emu3-megatron demo</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; color: #222 }}
table {{ border-collapse: collapse; margin: 1em 0 }}
th, td {{ text-align: left; padding: .35em .8em; vertical-align: top }}
tr {{ border-bottom: 1px solid #ddd }}
figure {{ display: inline-block; margin: 0 1em 1em 0 }}
svg {{ font-size: 11px }}
.frame {{ fill: #fafafa; stroke: #ccc }}
polyline {{ fill: none; stroke: #1763b6; stroke-width: 1.8 }}
</style></head>
<body><h1>emu3-megatron: the whole road in small</h1>
<p>Photos were coded by a small vision tokenizer, laid out as documents, packed, and learnt by a
small decoder under two tensor parallel processes. Everything below is its greedy output.</p>
{body}
</body></html>
"""
