"""Trains a tokenizer by a recipe, and measures it on files that it has not seen, beside baselines.

    python benchmarks/tokenizer_quality.py NAME --train FOLDER --test FOLDER --area 16384 65536 \
        --json FILE --picture FILE [--recipe NAME] [run.steps=… further overrides]

Clips of the two folders are trained on and measured too. A row of the JSON holds the figures of
`emu3 tokenizer evaluate`, the CPU seconds of the training, and the held-out PSNR while it trained.
NAME replaces a row of that name. The picture shows two frames of clips, or else the first photos of
the folder, above what is left of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import describe_machine
from PIL import Image, ImageOps

from emu3_megatron.media.files import VIDEO_SUFFIXES

SHOWN, SIDE = 8, 160


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("--recipe", default="tokenizer-small-cpu")
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--area", type=int, nargs="+", required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--note", default="", help="what else a reader of the row should know")
    parser.add_argument("--run", type=Path, help="keep the run here; an existing one goes on")
    arguments, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run or Path(folder) / "run"
        seconds = train(arguments, run, overrides)
        row = {
            "case": arguments.name,
            "recipe": arguments.recipe,
            "overrides": [
                text for text in overrides if not text.startswith(("run.dir", "run.init_from"))
            ],
            **seconds,
            "note": arguments.note,
            "curve": curve(run, "images"),
            "clip_curve": curve(run, "clips"),
            "sizes": evaluate(arguments, run, Path(folder) / "evaluation"),
        }
        write(arguments.json, row)
        if arguments.picture:
            picture(run, arguments.picture)


def train(arguments: argparse.Namespace, run: Path, overrides: list[str]) -> dict[str, float]:
    """CPU and wall-clock seconds of the command, imports and validation included."""
    held_out = f"every: 100, images: {arguments.test}, area: {arguments.area[0]}, shown: {SHOWN}"
    if clips_of(arguments.test):
        held_out += f", clips: {arguments.test}"
    clips = [f"data.clips={arguments.train}"] if clips_of(arguments.train) else []
    began, before = time.perf_counter(), os.times()
    emu3(
        *("tokenizer", "train", arguments.recipe, f"run.dir={run}"),
        *(f"data.images={arguments.train}", *clips, f"validation={{{held_out}}}", *overrides),
    )
    after = os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return {"cpu_seconds": round(cpu), "seconds": round(time.perf_counter() - began)}


def evaluate(arguments: argparse.Namespace, run: Path, out: Path) -> list[dict[str, Any]]:
    """What `emu3 tokenizer evaluate` finds at each size."""
    found = []
    for area in arguments.area:
        emu3(
            *("tokenizer", "evaluate", run / "tokenizer", arguments.test, "--area", area),
            *("--baseline-from", arguments.train, "--trained-on", arguments.train),
            *("--out", out / str(area)),
        )
        found += json.loads((out / str(area) / "evaluation.json").read_text(encoding="utf-8"))[
            "sizes"
        ]
    return found


def clips_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES]


def curve(run: Path, kind: str) -> list[list[float]]:
    """Step and held-out PSNR of images or clips."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    name = f"validation/{kind}/psnr_db"
    return [[row["step"], round(row[name], 3)] for row in rows if name in row]


def emu3(*arguments: Any) -> None:
    subprocess.run([sys.executable, "-m", "emu3_megatron", *map(str, arguments)], check=True)


def write(path: Path, row: dict[str, Any]) -> None:
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    rows = [known for known in rows if known["case"] != row["case"]]
    machine = {**describe_machine(), "command": "python benchmarks/tokenizer_quality.py NAME …"}
    row["commit"] = machine["commit"]
    path.write_text(
        json.dumps({**machine, "rows": [*rows, row]}, indent=2) + "\n", encoding="utf-8"
    )


def picture(run: Path, path: Path) -> None:
    """The last drawing of the run, its clips or else its photos: originals in the upper row."""
    drawn = sorted((run / "samples").iterdir())[-1]
    numbered = sorted(drawn.glob("*.png"), key=lambda file: int(file.name.partition("-")[0]))
    clips = [file for file in numbered if file.with_suffix(".mp4").exists()]
    pairs = [pair for clip in clips for pair in frames(Image.open(clip))]
    pairs = (pairs or [Image.open(file) for file in numbered])[:SHOWN]
    sheet = Image.new("RGB", (SIDE * len(pairs), 2 * SIDE), "white")
    for column, pair in enumerate(pairs):
        half = pair.width // 2
        for row in range(2):
            one = pair.crop((row * half, 0, (row + 1) * half, pair.height))
            one = ImageOps.contain(one, (SIDE, SIDE))
            sheet.paste(one, (column * SIDE, row * SIDE))
    sheet.save(path, quality=90)


def frames(drawn: Image.Image) -> list[Image.Image]:
    """Two of the eight frames that are drawn below one another."""
    height = drawn.height // 8
    return [drawn.crop((0, i * height, drawn.width, (i + 1) * height)) for i in (0, 6)]


if __name__ == "__main__":
    main()
