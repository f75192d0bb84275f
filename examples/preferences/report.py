"""Measures what DPO did to samples from unseen prompts, and shows them before and after.

    python examples/preferences/report.py runs/preferences --seeds 1 [2 ...] [--json FILE]

Reads what examples/shapes/run.sh and examples/preferences/tiny.sh left. Writes report.html,
report.json and before-after.png into the folder.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measures import Recogniser, code_nll
from PIL import Image, ImageDraw, ImageFont
from rule import read_scores, shapes

from emu3_megatron import pages, parallel
from emu3_megatron.files import replacing, write_json
from emu3_megatron.vision.tokenizer import VisionTokenizer

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from harness import describe_machine

BASE = Path("runs/shapes/decoder")
TOKENIZER = Path("runs/shapes/tokenizer/tokenizer")
WHEN = ("before", "after")
HELD_OUT = "validation/"
_SHOWN = 8  # samples a prompt
_GAP, _LEFT, _TOP = 2, 150, 20  # pixels: between samples, and of the captions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--json", type=Path, help="write what report.json has to this file too")
    parser.add_argument("--picture", type=Path, help="write the pictures to this PNG too")
    parsed = parser.parse_args()
    report = measure(parsed.out, parsed.seeds)
    for path in filter(None, [parsed.out / "report.json", parsed.json]):
        write_json(path, report)
    first = parsed.out / str(parsed.seeds[0])
    picture = sheet(first)
    for path in filter(None, [parsed.out / "before-after.png", parsed.picture]):
        picture.save(path)
    with replacing(parsed.out / "report.html") as beside:
        beside.write_text(
            page(report["rows"], picture, first / "dpo" / "metrics.jsonl"), encoding="utf-8"
        )
    for row in report["rows"]:
        before, after = (row["score"][when]["mean"] for when in WHEN)
        print(
            f"seed {row['seed']}: accuracy {row['held_out']['rewards/accuracies']:.3f} on held-out "
            f"pairs; vividness {before:.2f} before, {after:.2f} after, a rise of {row['rise']:.2f} "
            "standard deviations"
        )
    print(f"open {parsed.out / 'report.html'}")


def measure(out: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """The machine, a row for each seed, and their spread."""
    mesh = parallel.start()
    mesh.seed(0, 0)
    tokenizer, recogniser = VisionTokenizer.load(TOKENIZER), Recogniser()
    nll = code_nll(BASE, mesh, tokenizer)
    rows = [
        {
            "seed": seed,
            "pairs": pairs_of(out / str(seed)),
            "held_out": held_out(out / str(seed)),
            **scores_of(out / str(seed)),
            "recognised": {when: recogniser.of_samples(out / str(seed) / when) for when in WHEN},
            "code_nll": {
                "before": nll,
                "after": code_nll(out / str(seed) / "dpo", mesh, tokenizer),
            },
        }
        for seed in seeds
    ]
    parallel.stop()
    return {
        **describe_machine(),
        "recognised_of_drawn": recogniser.of_drawn(tokenizer),
        "rows": rows,
        "summary": {
            "accuracy": _spread([row["held_out"]["rewards/accuracies"] for row in rows]),
            "rise": _spread([row["rise"] for row in rows]),
        },
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def pairs_of(run: Path) -> dict[str, int]:
    """Number of pairs that are trained on, and held out."""
    every = sorted(run.glob("pairs-*.pairs.jsonl"))
    apart = sorted(run.glob("pairs-*-held-out.pairs.jsonl"))
    count = lambda files: sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    return {"trained": count(every) - count(apart), "held_out": count(apart)}


def held_out(run: Path) -> dict[str, float]:
    """The last evaluation on held-out pairs."""
    rows = [row for row in _rows(run / "dpo" / "metrics.jsonl") if f"{HELD_OUT}loss" in row]
    names = ("rewards/accuracies", "rewards/margins", "preference_loss", "num_pairs")
    return {name: rows[-1][HELD_OUT + name] for name in names}


def scores_of(run: Path) -> dict[str, Any]:
    """The rule's scores of samples from unseen prompts.

    `rise` is that of the mean, in standard deviations of the samples before; `rises` of each
    prompt's mean, in the same unit.
    """
    scores = {when: read_scores(run / when) for when in WHEN}
    score = {
        when: {
            "samples": len(found),
            "mean": statistics.mean(found.values()),
            "standard_deviation": statistics.pstdev(found.values()),
        }
        for when, found in scores.items()
    }
    unit = score["before"]["standard_deviation"]
    before, after = (_means(found) for found in scores.values())
    return {
        "score": score,
        "rise": (score["after"]["mean"] - score["before"]["mean"]) / unit,
        "rises": [(b - a) / unit for a, b in zip(before, after, strict=True)],
    }


def _means(scores: dict[str, float]) -> list[float]:
    """Of each prompt's samples, in the order of the prompts."""
    by_prompt: dict[int, list[float]] = {}
    for sample, score in scores.items():
        by_prompt.setdefault(int(sample.partition("-")[0]), []).append(score)
    return [statistics.mean(by_prompt[prompt]) for prompt in sorted(by_prompt)]


def _rows(metrics: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]


def sheet(run: Path) -> Image.Image:
    """Samples of every prompt, drawn from the same seeds before and after."""
    cell = shapes.SIDE + _GAP
    half = _SHOWN * cell + 6 * _GAP
    image = Image.new("RGB", (_LEFT + 2 * half, _TOP + len(shapes.UNSEEN) * cell), "white")
    pen = ImageDraw.Draw(image)
    pen.font = ImageFont.load_default(12)
    for column, when in enumerate(WHEN):
        pen.text((_LEFT + column * half, 4), when, fill="black")
        for line, subject in enumerate(shapes.UNSEEN):
            y = _TOP + line * cell
            pen.text((4, y + 24), subject.caption, fill="black")
            for i in range(_SHOWN):
                with Image.open(run / when / "media" / f"{line}-{i}.png") as sample:
                    image.paste(sample, (_LEFT + column * half + i * cell, y))
    return image


def page(rows: Sequence[dict[str, Any]], picture: Image.Image, metrics: Path) -> str:
    """The report, with pictures and curves of the first seed."""
    titles = {
        "rewards/accuracies": "accuracy",
        "rewards/margins": "margin of the rewards",
        "preference_loss": "preference loss",
    }
    evaluated = [row for row in _rows(metrics) if f"{HELD_OUT}loss" in row]
    curves = [
        pages.curve(title, [(row["step"], row[HELD_OUT + name]) for row in evaluated], "step")
        for name, title in titles.items()
    ]
    blocks = [
        pages.paragraph("Samples of prompts that were in no training."),
        pages.image(picture),
        *(block for row in rows for block in _table(row)),
        pages.heading("Held-out pairs in training"),
        pages.side_by_side(curves),
    ]
    return pages.page("DPO on what a rule prefers", blocks)


def _table(row: dict[str, Any]) -> list[pages.Html]:
    lines = {
        f"vividness, {name.replace('_', ' ')}": [row["score"][when][name] for when in WHEN]
        for name in ("mean", "standard_deviation")
    }
    for group, title in (("recognised", "{} recognised"), ("code_nll", "code NLL, {} pictures")):
        before, after = (row[group][when] for when in WHEN)
        lines |= {title.format(name): [before[name], after[name]] for name in before}
    cells = [[name, *(f"{value:.3g}" for value in values)] for name, values in lines.items()]
    return [pages.heading(f"Seed {row['seed']}"), pages.table(["measure", *WHEN], cells)]


if __name__ == "__main__":
    main()
