"""Draws captioned pictures of shapes, more or less vivid, and scores how vivid a picture is.

    python examples/shapes/shapes.py OUT [--seed N]

OUT gets four folders of PNG files, each beside its caption (.txt), and for each folder a table of
scores, FOLDER.jsonl. Most pictures are dull and few are vivid, and captions do not tell which, so a
model that has learnt these pictures draws dull ones and vivid ones for the same caption. Those for
the tokenizer are as often vivid as dull.
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 64  # pixels: 8 x 8 codes
COLOURS = {
    "red": (230, 30, 40),
    "orange": (230, 130, 30),
    "yellow": (230, 215, 30),
    "green": (30, 230, 60),
    "blue": (30, 80, 230),
    "purple": (150, 30, 230),
}
SHAPES = ("circle", "square", "triangle", "star")
SIZES = {"small": 0.22, "large": 0.36}  # radius as a share of the side
SCORES = ("saturation", "contrast", "sharpness")
# Number of pictures, how rare the vivid ones are, and the stream of random numbers: the tokenizer's
# pictures show what those of pre-training show, the vivid ones as often as the dull.
POOLS = {
    "pretraining": (2000, 2, 0),
    "tuning": (3000, 2, 1),
    "held-out": (900, 2, 2),
    "tokenizer": (2000, 1, 0),
}
_FINER = 4  # the picture is drawn so many times larger, and reduced


@dataclass(frozen=True)
class Subject:
    """What a picture shows, and its caption says."""

    size: str
    colour: str
    shape: str

    @property
    def caption(self) -> str:
        return f"A {self.size} {self.colour} {self.shape}."

    @property
    def is_unseen(self) -> bool:
        """Whether no picture shows it: kept for prompts that a model has not learnt."""
        return (list(COLOURS).index(self.colour) + SHAPES.index(self.shape)) % 6 == 0


SUBJECTS = [
    Subject(size, colour, shape) for size in SIZES for colour in COLOURS for shape in SHAPES
]
SEEN = [subject for subject in SUBJECTS if not subject.is_unseen]
UNSEEN = [subject for subject in SUBJECTS if subject.is_unseen]


def draw(subject: Subject, vivid: float, random: np.random.Generator) -> Image.Image:
    """A picture of a subject.

    Args:
        vivid: 0 is grey, flat and blurred; 1 is full of colour, contrast and sharp.
    """
    shape_colour = _mixed((128, 128, 128), COLOURS[subject.colour], 0.25 + 0.75 * vivid)
    dark = tuple(int(random.integers(8, 40)) for _ in range(3))
    background = _mixed((118, 118, 118), dark, vivid)
    side = SIDE * _FINER
    image = Image.new("RGB", (side, side), background)
    radius = side * SIZES[subject.size] * random.uniform(0.9, 1.1)
    x, y = side / 2 + random.uniform(-0.08, 0.08, 2) * side
    ImageDraw.Draw(image).polygon(_outline(subject.shape, x, y, radius), fill=shape_colour)
    image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return image.filter(ImageFilter.GaussianBlur(2.5 * (1 - vivid)))


def _mixed(one: tuple[int, ...], other: tuple[int, ...], share: float) -> tuple[int, ...]:
    return tuple(round(a + share * (b - a)) for a, b in zip(one, other, strict=True))


def _outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a shape; a circle has many."""
    corners = {"circle": 64, "square": 4, "triangle": 3, "star": 10}[shape]
    first = math.pi / 4 if shape == "square" else -math.pi / 2
    return [
        (x + r * math.cos(angle), y + r * math.sin(angle))
        for i in range(corners)
        for angle in [first + 2 * math.pi * i / corners]
        for r in [radius * (0.45 if shape == "star" and i % 2 else 1)]
    ]


def scores(image: Image.Image) -> dict[str, float]:
    """Three scores of a picture, each about 0 to 10; they take the place of models of taste."""
    pixels = np.asarray(image.convert("RGB"), np.float64) / 255
    low, high = np.quantile(pixels, [0.02, 0.98], axis=(0, 1))
    edges = np.hypot(np.diff(pixels, axis=0)[:, :-1], np.diff(pixels, axis=1)[:-1])
    return {
        "saturation": 10 * float(np.quantile(pixels.max(axis=2) - pixels.min(axis=2), 0.98)),
        "contrast": 10 * float((high - low).max()),
        "sharpness": 10 * float(np.quantile(edges, 0.99, axis=(0, 1)).max()),
    }


def vividness(image: Image.Image) -> float:
    """The mean of the three scores."""
    found = scores(image)
    return sum(found.values()) / len(found)


def write_pool(
    folder: Path, number: int, rarity: int, random: np.random.Generator
) -> Iterator[dict[str, object]]:
    """Write pictures of seen subjects, each beside its caption; gives the row of each.

    Args:
        rarity: of vivid pictures; 1 makes them as many as dull ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        subject = SEEN[int(random.integers(len(SEEN)))]
        image = draw(subject, float(random.uniform()) ** rarity, random)
        name = f"{i:05d}.png"
        image.save(folder / name)
        (folder / name).with_suffix(".txt").write_text(subject.caption + "\n", encoding="utf-8")
        # `lot` chooses as many pictures without looking at them.
        yield {"file": name, **scores(image), "lot": float(random.uniform())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    for name, (number, rarity, stream) in POOLS.items():
        random = np.random.default_rng([parsed.seed, stream])
        rows = list(write_pool(parsed.out / name, number, rarity, random))
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (parsed.out / f"{name}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
