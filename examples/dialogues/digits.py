"""Questions about scikit-learn's 1,797 pictures of handwritten digits, as LLaVA writes them.

python examples/dialogues/digits.py FOLDER

Writes FOLDER/train, pictures with captions, FOLDER/held-out, a fifth of them, FOLDER/train.json and
FOLDER/held-out.json, which ask about each picture in every wording, and FOLDER/texts, lines about
digits. The pictures are 8 x 8 pixels, each of which becomes a square of 8 x 8, which is a code.
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
    (folder / "texts" / "digits.jsonl").write_text("\n".join(texts), encoding="utf-8")
    random = np.random.default_rng(0)
    digits = load_digits()
    numbers = random.permutation(len(digits.target)).tolist()
    held_out = set(numbers[: len(numbers) // 5])
    rows: dict[str, list[Any]] = {"train": [], "held-out": []}
    for number, (values, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        part = "held-out" if number in held_out else "train"
        name = f"{part}/{number:04d}.png"
        pixels = (values * 255 / 16).round().astype(np.uint8)
        Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)).save(folder / name)
        if part == "train":
            (folder / name).with_suffix(".txt").write_text(caption(int(digit)), encoding="utf-8")
        for question, answer in WORDINGS.items():
            rows[part].append(row(name, question, answer(int(digit))))
    for part, found in rows.items():
        (folder / f"{part}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")


def caption(digit: int) -> str:
    return f"{digit}, {NAMES[digit]}, {'odd' if digit % 2 else 'even'}"


def row(image: str, question: str, answer: str) -> dict[str, Any]:
    messages = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": messages}


if __name__ == "__main__":
    main()
