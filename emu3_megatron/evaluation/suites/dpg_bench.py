"""DPG-Bench: four samples of a prompt as one image of 2 x 2, named as the prompt's file.

TencentQQGYLab/ELLA @ 3c228f1: dpg_bench/prompts/*.txt are read; README.md says what is written.
dpg_bench/compute_dpg_bench.py takes every file of its folder as an image, knows it by its name up
to the first dot, and cuts squares of `--resolution` pixels out of it, by rows.
"""

from collections.abc import Sequence
from pathlib import Path

from emu3_megatron.errors import InputError
from emu3_megatron.evaluation.suites.plan import Plan, Suite, SuiteFile, only_one, read_text


def _read(prompts: Sequence[Path], each: int) -> Plan:
    folder = only_one(prompts, "DPG-Bench")
    paths = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not paths:
        raise InputError(f"{folder}: no folder of .txt files; give DPG-Bench's dpg_bench/prompts")
    plan = Plan()
    before: dict[str, int] = {}
    for path in paths:
        prompt = read_text(path).strip()
        if not prompt:
            raise InputError(f"{path}: empty; leave it out")
        if "." in path.stem:
            raise InputError(f"{path}: DPG-Bench cuts names at the first dot; rename it")
        first = before.get(prompt, 0)
        numbers = tuple(range(first, first + each))
        plan.files.append(SuiteFile(Path(f"{path.stem}.png"), prompt, numbers))
        before[prompt] = first + each
    return plan


DPG_BENCH = Suite(
    name="dpg-bench",
    title="DPG-Bench",
    folder="images",
    guidance=5.0,
    each=4,
    is_free=False,
    read=_read,
    next="bash dpg_bench/dist_eval.sh {folder} {side}",
    needs_squares=True,
)
