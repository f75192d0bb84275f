"""Runs the demo: its stages one after another, then the measures, the summary and the page."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from emu3_megatron.demo.measures import measure
from emu3_megatron.demo.report import write_report
from emu3_megatron.demo.results import MODELS, Results
from emu3_megatron.demo.sections import read_metrics
from emu3_megatron.demo.stages import Choice, stages_of
from emu3_megatron.demo.work import Work
from emu3_megatron.files import write_json
from emu3_megatron.vision.tokenizer import VisionTokenizer


def run_demo(out: Path, choice: Choice = "first") -> None:
    """Run the stages, and leave report.html and summary.json in `out`.

    A second run in the same folder begins anew.

    Raises:
        InputError: a stage failed; the message names it and its log.
    """
    started = time.perf_counter()
    clear(out)
    stages, work = stages_of(choice), Work(out)
    last = len(stages) + 1
    for number, stage in enumerate(stages, 1):
        _say(f"stage {number} of {last}: {stage.title}. {stage.does}")
        work.run(stage.name, stage.run)
        print(f"{stage.title}: {work.seconds[stage.name]:.0f} s", flush=True)
    _say(f"stage {last} of {last}: Evaluation. Every model is measured, and the page written.")
    results = measure(work, has_later=choice == "all")
    summary = _summary(results)
    summary["seconds_of_stages"] = work.seconds
    summary["seconds"] = round(time.perf_counter() - started, 1)
    write_json(out / "summary.json", summary)
    write_report(stages, results, VisionTokenizer.load(work.tokenizer))
    print(json.dumps(summary, indent=2))
    print(f"open {out / 'report.html'}")


def clear(out: Path) -> None:
    """Remove what an earlier demo left in the folder, and nothing else."""
    names = ["logs", "summary.json", "report.html"]
    for stage in stages_of("all"):
        names += stage.leaves
    for path in (path for name in names for path in out.glob(name)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _say(line: str) -> None:
    print(f"\n── {line}", flush=True)


def _summary(results: Results) -> dict[str, Any]:
    rows = read_metrics(results.out / MODELS["stage-1"])
    made = results.first
    matches = [np.mean(d == t.vision.codes) for d, t in zip(made.drawn, made.images, strict=True)]
    return {
        "tokenizer_psnr_db": round(results.tokenizer_psnr_db, 2),
        "loss_first": rows[0]["loss"],
        "loss_last": rows[-1]["loss"],
        "code_match": round(float(np.mean(matches)), 4),
        "captions": len(made.images),
        **(results.later.figures() if results.later else {}),
    }
