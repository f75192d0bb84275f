"""The rule that decides the preference, in the place of people, and the prompts.

python examples/preferences/rule.py prompts FOLDER   # writes seen.txt and unseen.txt there
python examples/preferences/rule.py score SAMPLES    # writes SAMPLES/rule.csv
"""

import csv
import sys
from pathlib import Path

from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[1] / "shapes"))
import shapes

SCORES = "rule.csv"


def write_prompts(folder: Path) -> None:
    """Write the captions that the base model was trained on, and those that it was not."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, subjects in {"seen": shapes.SEEN, "unseen": shapes.UNSEEN}.items():
        lines = "".join(subject.caption + "\n" for subject in subjects)
        (folder / f"{name}.txt").write_text(lines, encoding="utf-8")


def write_scores(samples: Path) -> None:
    """Write a table with the rule's score of every image of a folder of samples."""
    with (samples / SCORES).open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["sample", "vividness"])
        for path in sorted((samples / "media").glob("*.png")):
            with Image.open(path) as image:
                table.writerow([path.stem, f"{shapes.vividness(image):.4f}"])


def read_scores(samples: Path) -> dict[str, float]:
    """The table of `write_scores`: the score of each sample by its id, prompt-sample."""
    with (samples / SCORES).open(newline="", encoding="utf-8") as file:
        return {row["sample"]: float(row["vividness"]) for row in csv.DictReader(file)}


if __name__ == "__main__":
    {"prompts": write_prompts, "score": write_scores}[sys.argv[1]](Path(sys.argv[2]))
