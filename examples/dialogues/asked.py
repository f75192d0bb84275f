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
    blind = {question: _with_another_image(of) for question, of in by_question.items()}
    return {
        **_shares(asked, sum(blind[one.question] for one in asked) / len(asked)),
        "by_question": {name: _shares(of, blind[name]) for name, of in by_question.items()},
    }


def _shares(asked: Sequence[Asked], another_image: float) -> dict[str, float]:
    exact = sum(one.is_exact for one in asked) / len(asked)
    return {
        "questions": len(asked),
        "exact": round(exact, 4),
        "another_image": round(another_image, 4),
    }


def _with_another_image(asked: Sequence[Asked]) -> float:
    """Over all pairs of two dialogues of one question: said to the one, and right for the other."""
    said, right = (Counter(getattr(one, name) for one in asked) for name in ("said", "right"))
    equal = sum(said[answer] * right[answer] for answer in right)
    exact = sum(one.is_exact for one in asked)
    return (equal - exact) / max(1, len(asked) * (len(asked) - 1))


def draw(asked: Sequence[Asked], tokenizer: VisionTokenizer) -> Image.Image:
    """Questions chosen at random, then some of those that were answered wrongly.

    Images are shown as the tokenizer decodes them.
    """
    groups = _groups([one for one in asked if one.codes_hw is not None])
    heights = [_TITLE + -(-len(some) // _COLUMNS) * _HEIGHT for some in groups.values()]
    sheet = Image.new("RGB", (_COLUMNS * _WIDTH + _GAP, sum(heights)), "white")
    for number, (title, some) in enumerate(groups.items()):
        top = sum(heights[:number])
        _write(sheet, (_GAP, top + 8), title, "black")
        for i, one in enumerate(some):
            row, column = divmod(i, _COLUMNS)
            corner = _GAP + column * _WIDTH, top + _TITLE + row * _HEIGHT
            _draw_one(sheet, corner, one, tokenizer)
    return sheet


def _groups(asked: Sequence[Asked]) -> dict[str, list[Asked]]:
    """What the picture shows, under its titles."""
    random = np.random.default_rng(0)
    wrong = [one for one in asked if not one.is_exact]
    return {
        "chosen at random": _chosen(random, asked, 12),
        "chosen at random among the wrong answers": _chosen(random, wrong, 6),
    }


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
