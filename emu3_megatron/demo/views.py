"""What the later stages of the demo learn from: views of the photos, and dialogues about them.

A view is the middle of a photo, made paler or more colourful by chance. Nothing in its caption says
so: which of the two a model draws is left to quality fine-tuning and to preferences.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from emu3_megatron.demo.material import PHOTOS, Source, write_photo
from emu3_megatron.media.images import load_image

# Of each photo: for stage 2 and after it, to measure by, and for quality to select from.
VIEWS, HELD_OUT, POOL = 12, 4, 24
SIDE = 128  # pixels of a view: 16 x 16 codes
WHAT, WHERE = "What is this?", "Where was it taken?"
_COLOURS = ((0.2, 0.5), (1.2, 1.6))  # pale or colourful; 0 is grey, 1 as the photo is


def lay_out_views(folder: Path, each: int, seed: int) -> None:
    """Write so many views of each photo, beside its caption: NAME-0.png and so on."""
    random = np.random.default_rng(seed)
    for source in PHOTOS:
        photo = load_image(source.locate())
        for i in range(each):
            name = f"{source.locate().stem}-{i}"
            write_photo(folder, name, _view(photo, random), source.caption)


def _view(photo: Image.Image, random: np.random.Generator) -> Image.Image:
    middle = ImageOps.fit(photo, (SIDE, SIDE), Image.Resampling.LANCZOS)
    colour = random.uniform(*_COLOURS[random.integers(2)])
    return ImageEnhance.Color(middle).enhance(colour)


def lay_out_dialogues(views: Path, each: int) -> None:
    """Write VIEWS.json: LLaVA's rows, a dialogue about each view, of one turn or of two."""
    rows = []
    for number, source in enumerate(PHOTOS):
        for i in range(each):
            asked = [(WHAT, source.what), (WHERE, source.where)]
            rows.append(_row(f"{source.locate().stem}-{i}.png", _turns(asked, number + i)))
    views.with_suffix(".json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def _turns(asked: Sequence[tuple[str, str]], number: int) -> list[tuple[str, str]]:
    """Either of the questions alone, or both in either order."""
    what, where = asked
    return [[what], [where], [what, where], [where, what]][number % 4]


def _row(image: str, turns: Sequence[tuple[str, str]]) -> dict[str, Any]:
    messages = [
        {"from": speaker, "value": text}
        for turn in turns
        for speaker, text in zip(("human", "gpt"), turn, strict=True)
    ]
    messages[0]["value"] = f"<image>\n{messages[0]['value']}"
    return {"image": image, "conversations": messages}


def lay_out_texts(folder: Path) -> None:
    """Write what stands in the place of pure text: the captions and answers as sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": _sentences(source)}) for source in PHOTOS]
    (folder / "sentences.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _sentences(source: Source) -> str:
    return f"{source.caption} {source.what} {source.where}"
