"""Tables of rows: the dialogues of a file, or why its rows cannot be used."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from emu3_megatron.media.files import path_of
from emu3_megatron.prepare.dialogues.parsing import (
    Dialogue,
    Medium,
    OddRowError,
    Question,
    parse_row,
)
from emu3_megatron.prepare.dialogues.rows import read_rows
from emu3_megatron.prepare.dialogues.shown import Shown, inside_name
from emu3_megatron.prepare.items import Failed, attempt, attempt_each
from emu3_megatron.prepare.tables import Row, read_groups, write_groups

GROUP = 512  # rows of a file that become a part together


@dataclass(frozen=True)
class ReadTask:
    """A file of rows, by its path inside the source folder."""

    out: Path
    source: str
    size: int


class ReadRows:
    """Writes the table of a file: each row as a dialogue, or why it cannot be used."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __call__(self, task: ReadTask) -> None:
        write_groups(task.out, "dialogue rows", _grouped(self._rows(task.source), GROUP))

    def _rows(self, source: str) -> Iterator[Row]:
        """Rows of a file; where it cannot be read any further, one that says so."""
        number = -1
        for found in attempt_each(source, read_rows(path_of(self._folder, source))):
            if isinstance(found, Failed):
                yield {"source": source, "row": number + 1, **_odd(f"unreadable: {found.reason}")}
                return
            number, row = found
            parsed = attempt(f"{source}: row {number}", partial(_parsed, row, source, number))
            if isinstance(parsed, Failed):
                parsed = _odd(f"unreadable: {parsed.reason}")
            yield {"source": source, "row": number, **parsed}


def _grouped(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    group: list[Row] = []
    for row in rows:
        group.append(row)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _odd(reason: str) -> Row:
    return {"error": reason, "shown": [], "turns": 0}


def _parsed(row: Any, source: str, number: int) -> Row:
    try:
        dialogue = parse_row(row)
    except OddRowError as error:
        return _odd(str(error))
    shown = [_shown(medium, source, number, i) for i, medium in enumerate(dialogue.media)]
    text = json.dumps(
        {"turns": [asdict(turn) for turn in dialogue.turns], "system": dialogue.system},
        ensure_ascii=False,
    )
    text.encode()  # a lone surrogate, which JSON can spell, is no text
    return {
        "shown": [str(one) for one in shown],
        "turns": len(dialogue.turns),
        "dialogue": text,
    }


def _shown(medium: Medium, source: str, row: int, place: int) -> Shown:
    if medium.name is None:
        return Shown("inside", inside_name(source, row, place))
    return Shown(medium.kind, medium.name)


def read_decisions(table: Path) -> list[list[Row]]:
    """What decides whether rows are used, without their texts, by the table's groups."""
    return read_groups(table, ["source", "row", "shown", "turns", "error"])


def read_dialogues(table: Path, group: int) -> list[Dialogue | None]:
    """The dialogues of a group of rows; None of rows that cannot be used."""
    (rows,) = read_groups(table, ["dialogue"], [group])
    return [_dialogue(row["dialogue"]) if row["dialogue"] else None for row in rows]


def _dialogue(text: str) -> Dialogue:
    values = json.loads(text)
    return Dialogue([Question(**turn) for turn in values["turns"]], [], values["system"])
