"""Reads what the suites' own scorers wrote, and sums it up as they do.

GenEval @ af4902f: evaluation/summary_scores.py. T2I-CompBench @ 1b70949: the means that its scorers
print. ELLA @ 3c228f1: dpg_bench/compute_dpg_bench.py. VBench @ 45e79ec: scripts/cal_final_score.py
and scripts/constant.py.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from emu3_megatron.errors import InputError
from emu3_megatron.evaluation.suites.plan import read_text

Scores = dict[str, float]


def _geneval(paths: Sequence[Path]) -> Scores:
    """The share of right images of each task, and the mean over tasks."""
    tasks: dict[str, list[bool]] = defaultdict(list)
    for path in paths:
        for number, line in enumerate(read_text(path).splitlines(), 1):
            record = _json(line, f"{path}: line {number}")
            try:
                tasks[record["tag"]].append(bool(record["correct"]))
            except (TypeError, KeyError):
                raise InputError(
                    f"{path}: line {number}: no `tag` and `correct`; give what "
                    "evaluate_images.py wrote"
                ) from None
    scores = {tag: fmean(correct) for tag, correct in tasks.items()}
    return {**scores, "overall": fmean(scores.values())} if scores else {}


# Where the scorers leave their answers in a category's folder, and what each category is scored by.
_ANSWERS = {
    "color": "annotation_blip",
    "shape": "annotation_blip",
    "texture": "annotation_blip",
    "spatial": "labels/annotation_obj_detection_2d",
    "3d_spatial": "labels/annotation_obj_detection_3d",
    "numeracy": "annotation_num",
    "non_spatial": "annotation_clip",
    "complex": "annotation_3_in_1",
}


def _compbench(paths: Sequence[Path]) -> Scores:
    """The mean answer of each category; paths are their folders."""
    scores = {}
    for path in paths:
        category = path.name.removesuffix("_val")
        if category not in _ANSWERS:
            raise InputError(
                f"{path}: no category's folder; name those that were scored, color_val say"
            )
        file = path / _ANSWERS[category] / "vqa_result.json"
        answers = _json(read_text(file), str(file))
        try:
            scores[category] = fmean(float(answer["answer"]) for answer in answers)
        except (TypeError, KeyError, ValueError):
            raise InputError(f"{file}: no list of answers; score the category anew") from None
    return scores


def _dpg_bench(paths: Sequence[Path]) -> Scores:
    """The overall score, and those of its five broad categories."""
    text = "\n".join(map(read_text, paths))
    overall = re.findall(r"^DPG-Bench score: ([\d.]+)", text, re.M)
    if not overall:
        return {}
    broad = re.search(r"^L1 category scores:\n((?:\t.*\n)*)", text, re.M)
    lines = re.findall(r"^\t(.+): ([\d.]+)", broad[1], re.M) if broad else []
    return {"overall": float(overall[-1]), **{name: float(value) for name, value in lines}}


# Lowest and highest score of each dimension, and its weight; those of quality come first.
_QUALITY = {
    "subject consistency": (0.1462, 1.0, 1.0),
    "background consistency": (0.2615, 1.0, 1.0),
    "temporal flickering": (0.6293, 1.0, 1.0),
    "motion smoothness": (0.706, 0.9975, 1.0),
    "aesthetic quality": (0.0, 1.0, 1.0),
    "imaging quality": (0.0, 1.0, 1.0),
    "dynamic degree": (0.0, 1.0, 0.5),
}
_SEMANTIC = {
    "object class": (0.0, 1.0, 1.0),
    "multiple objects": (0.0, 1.0, 1.0),
    "human action": (0.0, 1.0, 1.0),
    "color": (0.0, 1.0, 1.0),
    "spatial relationship": (0.0, 1.0, 1.0),
    "scene": (0.0, 0.8222, 1.0),
    "appearance style": (0.0009, 0.2855, 1.0),
    "temporal style": (0.0, 0.364, 1.0),
    "overall consistency": (0.0, 0.364, 1.0),
}
_QUALITY_WEIGHT, _SEMANTIC_WEIGHT = 4, 1


def _vbench(paths: Sequence[Path]) -> Scores:
    """Every dimension in percent, and the total where all sixteen are there."""
    found: Scores = {}
    for path in paths:
        record = _json(read_text(path), str(path))
        try:
            found |= {name.replace("_", " "): value[0] for name, value in record.items()}
        except (AttributeError, TypeError, KeyError, IndexError):
            raise InputError(
                f"{path}: no scores by dimension; give a file that ends in _eval_results.json"
            ) from None
    percent = {name: 100 * value for name, value in found.items()}
    if (_QUALITY.keys() | _SEMANTIC.keys()) - found.keys():
        return percent
    quality, semantic = _weighted(found, _QUALITY), _weighted(found, _SEMANTIC)
    total = (_QUALITY_WEIGHT * quality + _SEMANTIC_WEIGHT * semantic) / (
        _QUALITY_WEIGHT + _SEMANTIC_WEIGHT
    )
    return {"total": 100 * total, **percent}


def _weighted(found: Scores, ranges: Mapping[str, tuple[float, float, float]]) -> float:
    scores = [
        (found[name] - low) / (high - low) * weight for name, (low, high, weight) in ranges.items()
    ]
    return sum(scores) / sum(weight for _, _, weight in ranges.values())


_READERS: dict[str, Callable[[Sequence[Path]], Scores]] = {
    "geneval": _geneval,
    "t2i-compbench": _compbench,
    "dpg-bench": _dpg_bench,
    "vbench": _vbench,
}


def read_scores(suite: str, paths: Sequence[Path]) -> Scores:
    """What the suite's scorer found, by its own names.

    Raises:
        InputError: a file is missing or not of this scorer, or holds no scores.
    """
    scores = _READERS[suite](paths)
    if not scores:
        raise InputError(f"{paths[0]}: no scores of {suite}; was it scored to its end?")
    return scores


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise InputError(f"{where}: not JSON; give what the suite's scorer wrote") from None
