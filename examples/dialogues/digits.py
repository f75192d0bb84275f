"""Questions about scikit-learn's 1,797 pictures of handwritten digits, as LLaVA writes them.

python examples/dialogues/digits.py FOLDER

Writes pictures of 8 x 8 pixels: FOLDER/train with captions, and FOLDER/held-out, a fifth of them.
Of each one for training there are three copies that are moved by a pixel, so that the model does
not learn places by heart; FOLDER/train.json asks about every copy in another wording, and
FOLDER/held-out.json about each picture in every wording. FOLDER/texts holds lines about digits.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Each wording with its answer for a digit.
WORDINGS: dict[str, Callable[[int], str]] = {
    "<image>\nWhich digit is this?": str,
    "<image>\nWrite the number you see as a word.": lambda digit: NAMES[digit],
    "What does <image> show?": lambda digit: f"It shows a {NAMES[digit]}.",
    "Is this digit even or odd?\n<image>": lambda digit: "odd" if digit % 2 else "even",
}


def main() -> None:
    folder = Path(sys.argv[1])
    for name in ("train", "held-out", "texts"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    texts = [json.dumps({"text": f"The digit {caption(digit)}."}) for digit in range(10)]
    (folder / "texts" / "digits.jsonl").write_text("\n".join(texts))
    random = np.random.default_rng(0)
    digits = load_digits()
    numbers = random.permutation(len(digits.target)).tolist()
    held_out = set(numbers[: len(numbers) // 5])
    rows: dict[str, list[Any]] = {"train": [], "held-out": []}
    for number, (values, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        pixels = (values * 255 / 16).round().astype(np.uint8)
        part = "held-out" if number in held_out else "train"
        for i, (question, answer) in enumerate(WORDINGS.items()):
            name = f"{part}/{number:04d}-{i if part == 'train' else 0}.png"
            shown = moved(pixels, *random.integers(-1, 2, 2)) if i and part == "train" else pixels
            Image.fromarray(shown).save(folder / name)
            if part == "train":
                (folder / name).with_suffix(".txt").write_text(caption(int(digit)))
            rows[part].append(row(name, question, answer(int(digit))))
    for part, found in rows.items():
        (folder / f"{part}.json").write_text(json.dumps(found, indent=1))


def caption(digit: int) -> str:
    return f"{digit}, {NAMES[digit]}, {'odd' if digit % 2 else 'even'}"


def moved(pixels: np.ndarray, down: int, right: int) -> np.ndarray:
    """The picture moved by a pixel at most; what comes in is black."""
    return np.pad(pixels, 1)[1 - down : 9 - down, 1 - right : 9 - right]


def row(image: str, question: str, answer: str) -> dict[str, Any]:
    messages = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": messages}


if __name__ == "__main__":
    main()
