"""GenEval: a folder a prompt, with its line of metadata and four samples.

djghosh13/geneval @ af4902f: prompts/evaluation_metadata.jsonl is read; README.md and
generation/diffusers_generate.py say what is written, evaluation/evaluate_images.py what is found:
folders whose name is a number, `metadata.jsonl` in each, and `samples/` with files of digits and
`.png`.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emu3_megatron.errors import InputError
from emu3_megatron.evaluation.suites.plan import (
    Plan,
    Suite,
    SuiteFile,
    only_one,
    read_text,
    take,
)

_READ_BY_SCORER = {"prompt": str, "tag": str, "include": list}


def _read(prompts: Sequence[Path], each: int) -> Plan:
    path = only_one(prompts, "GenEval")
    plan, before = Plan(), Counter[str]()
    for index, record in enumerate(_records(path)):
        folder, prompt = Path(f"{index:05}"), record["prompt"]
        plan.texts[folder / "metadata.jsonl"] = json.dumps(record)
        for i in range(each):
            name = folder / "samples" / f"{i:05}.png"
            plan.files.append(SuiteFile(name, prompt, (before[prompt] + i,)))
        before[prompt] += each
    return plan


def _records(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), 1):
        where = f"{path}: line {number}"
        try:
            record = json.loads(line)
        except ValueError:
            raise InputError(f"{where}: not JSON; give GenEval's own file") from None
        for name, kind in _READ_BY_SCORER.items():
            take(record, name, kind, where)
        records.append(record)
    return records


GENEVAL = Suite(
    name="geneval",
    title="GenEval",
    folder="images",
    guidance=5.5,
    each=4,
    is_free=True,
    read=_read,
    next="python evaluation/evaluate_images.py {folder} --outfile results.jsonl --model-path …",
)
