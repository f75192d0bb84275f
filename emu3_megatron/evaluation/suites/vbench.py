"""VBench: `PROMPT-INDEX.mp4`, five of each prompt, 25 where temporal flickering is judged.

Vchitect/VBench @ 45e79ec: prompts/README.md says what is written; vbench/VBench_full_info.json is
read, as PyPI's vbench 0.1.5 has it too. vbench/__init__.py (build_full_info_json) looks for the
names of indices 0 to 4, with the suffix of any file of the folder, so that there may be no other
files; static_filter.py takes up to five still clips out of the 25. A prompt that stands in the file
twice has its clips once.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from emu3_megatron.errors import InputError
from emu3_megatron.evaluation.suites.plan import (
    Plan,
    Suite,
    SuiteFile,
    check_name,
    only_one,
    read_text,
    take,
)

_FLICKERING, _OF_STILL = "temporal_flickering", 25


def _read(prompts: Sequence[Path], each: int) -> Plan:
    path = only_one(prompts, "VBench")
    numbers: dict[str, int] = {}
    for number, record in enumerate(_records(path), 1):
        where = f"{path}: record {number}"
        prompt = take(record, "prompt_en", str, where)
        dimensions = take(record, "dimension", list, where)
        wanted = _OF_STILL if _FLICKERING in dimensions else each
        check_name(f"{prompt}-{wanted}.mp4", where)
        numbers[prompt] = max(wanted, numbers.get(prompt, 0))
    return Plan(
        [
            SuiteFile(Path(f"{prompt}-{i}.mp4"), prompt, (i,))
            for prompt, count in numbers.items()
            for i in range(count)
        ]
    )


def _records(path: Path) -> list[object]:
    try:
        records = json.loads(read_text(path))
    except ValueError:
        raise InputError(f"{path}: not JSON; give VBench's VBench_full_info.json") from None
    if not isinstance(records, list) or not records:
        raise InputError(f"{path}: no list of prompts; give VBench's VBench_full_info.json")
    return records


VBENCH = Suite(
    name="vbench",
    title="VBench",
    folder="videos",
    guidance=None,
    each=5,
    is_free=False,
    read=_read,
    next="python static_filter.py --videos_path {folder}, then vbench evaluate for each dimension",
    is_video=True,
)
