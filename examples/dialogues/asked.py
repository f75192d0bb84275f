"""Questions with a model's answers: how many are exact, and a picture of some.

`answers.py` asks them.
"""

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from emu3_megatron.media.images import to_image
from emu3_megatron.vision.tokenizer import VisionTokenizer

_COLUMNS, _WIDTH, _HEIGHT, _SIDE, _GAP, _TITLE = 3, 330, 92, 80, 12, 30  # of the picture, in pixels


@dataclass(frozen=True)
class Asked:
    """A dialogue's last question, and what the model said to it.

    Attributes:
        codes_hw: of the dialogue's first image, if there is one.
    """

    question: str
    right: str
    said: str
    codes_hw: np.ndarray | None

    @property
    def is_exact(self) -> bool:
        return self.said == self.right


def score(asked: Sequence[Asked]) -> dict[str, Any]:
    """Share of exact answers, of all and of each question.

    `another_image` is what it would be if every question were asked of another dialogue's image,
    drawn at random among those of the same question: what a model gets that does not look.
    """
    by_question: dict[str, list[Asked]] = {}
    for one in asked:
        by_question.setdefault(one.question, []).append(one)
    alone = {question: _with_another_image(of) for question, of in by_question.items()}
    return {
        "questions": len(asked),
        "exact": _exact(asked),
        "another_image": round(
            sum(alone[question] * len(of) for question, of in by_question.items()) / len(asked), 4
        ),
        "by_question": {
            question: {
                "questions": len(of),
                "exact": _exact(of),
                "another_image": round(alone[question], 4),
            }
            for question, of in by_question.items()
        },
    }


def _exact(asked: Sequence[Asked]) -> float:
    return round(sum(one.is_exact for one in asked) / len(asked), 4)


def _with_another_image(asked: Sequence[Asked]) -> float:
    """Over all pairs of two dialogues of one question: said to the one, and right for the other."""
    said, right = (Counter(getattr(one, name) for one in asked) for name in ("said", "right"))
    equal = sum(said[answer] * right[answer] for answer in right) - sum(
        one.is_exact for one in asked
    )
    return equal / max(1, len(asked) * (len(asked) - 1))


def draw(asked: Sequence[Asked], tokenizer: VisionTokenizer) -> Image.Image:
    """Questions chosen at random, then some of those that were answered wrongly.

    Images are shown as the tokenizer decodes them.
    """
    seen = [one for one in asked if one.codes_hw is not None]
    random = np.random.default_rng(0)
    groups = {
        "chosen at random": _chosen(random, seen, 12),
        "chosen at random among the wrong answers": _chosen(
            random, [one for one in seen if not one.is_exact], 6
        ),
    }
    rows = {title: -(-len(some) // _COLUMNS) for title, some in groups.items()}
    height = sum(_TITLE + count * _HEIGHT for count in rows.values())
    sheet = Image.new("RGB", (_COLUMNS * _WIDTH + _GAP, height), "white")
    top = 0
    for title, some in groups.items():
        _write(sheet, (_GAP, top + 8), title, "black")
        for i, one in enumerate(some):
            row, column = divmod(i, _COLUMNS)
            corner = _GAP + column * _WIDTH, top + _TITLE + row * _HEIGHT
            _draw_one(sheet, corner, one, tokenizer)
        top += _TITLE + rows[title] * _HEIGHT
    return sheet


def _chosen(random: np.random.Generator, asked: Sequence[Asked], number: int) -> list[Asked]:
    return [asked[i] for i in random.permutation(len(asked))[:number]]


def _draw_one(
    sheet: Image.Image, corner: tuple[int, int], one: Asked, tokenizer: VisionTokenizer
) -> None:
    assert one.codes_hw is not None
    (pixels,) = tokenizer.decode_images(torch.from_numpy(one.codes_hw)[None].long())
    image = to_image(pixels)
    image.thumbnail((_SIDE, _SIDE))
    sheet.paste(image, corner)
    left, top = corner[0] + _SIDE + _GAP, corner[1]
    question = textwrap.wrap(one.question.removeprefix("<image>").removesuffix("<image>"), 34)
    _write(sheet, (left, top), "\n".join(question[:2]), "black")
    answer = one.said if one.is_exact else f"{one.said}\n(right: {one.right})"
    _write(sheet, (left, top + 36), answer, "green" if one.is_exact else "red")


def _write(sheet: Image.Image, corner: tuple[int, int], text: str, colour: str) -> None:
    ImageDraw.Draw(sheet).text(corner, text, fill=colour, font=ImageFont.load_default(13))
