"""Tables of scores, .csv, .jsonl or .parquet: a column `sample` with ids, and columns of numbers.

Each column of scores counts as a voter; higher is better.
"""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from emu3_megatron.alignment.imports.ballots import Ballot
from emu3_megatron.errors import InputError

ID = "sample"
SUFFIXES = (".csv", ".jsonl", ".parquet")
# Numbers that are no scores: of samples.jsonl, and the index that pandas writes.
_NO_SCORES = {ID, "prompt", "seed", "", "__index_level_0__", "Unnamed: 0"}

Row = dict[str, Any]


def ballots(file: Path, columns: Sequence[str]) -> Iterator[Ballot]:
    """The scores of a table. Empty cells are passed over.

    Args:
        columns: of scores; none: the only one there is.

    Raises:
        InputError: the file cannot be read, columns are missing, or a cell is no number; with the
            number of the row.
    """
    rows = _read(file)
    if not rows or ID not in rows[0]:
        found = ", ".join(rows[0]) if rows else "none"
        raise InputError(f"{file}: no column {ID!r} with ids such as 12-3 (columns: {found})")
    columns = columns or [_only_score(file, rows)]
    seen: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        where = f"{file}: row {number}"
        id = str(row.get(ID))
        if id in seen:
            raise InputError(f"{where}: sample {id} again, as in row {seen[id]}")
        seen[id] = number
        for column in columns:
            score = _score(row, column, where)
            if score is not None:
                yield Ballot(where, column, {id: score}, rated=True)


def _read(file: Path) -> list[Row]:
    try:
        if file.suffix == ".parquet":
            return _read_parquet(file)
        with file.open(encoding="utf-8-sig", newline="") as lines:
            return list(csv.DictReader(lines) if file.suffix == ".csv" else _records(lines, file))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: cannot be read ({error})") from None


def _records(lines: Any, file: Path) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise InputError(f"{file}: row {number}: no JSON object")
        yield record


def _read_parquet(file: Path) -> list[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise InputError(f"{file}: to read it, pip install pyarrow; or save it as .csv") from None
    if not file.is_file():
        raise FileNotFoundError(file)
    try:
        return pq.read_table(file).to_pylist()
    except pa.ArrowException as error:
        raise InputError(f"{file}: not a Parquet file ({str(error).splitlines()[0]})") from None


def _only_score(file: Path, rows: Sequence[Row]) -> str:
    """The one column of numbers."""
    names = [name for name in rows[0] if name not in _NO_SCORES]
    scores = [name for name in names if all(_is_number(row.get(name)) for row in rows)]
    if len(scores) != 1:
        found = ", ".join(scores) or "none"
        raise InputError(f"{file}: columns of numbers: {found}; name the scores with --column")
    return scores[0]


def _is_number(cell: Any) -> bool:
    try:
        return cell in (None, "") or (not isinstance(cell, bool) and math.isfinite(float(cell)))
    except (TypeError, ValueError):
        return False


def _score(row: Row, column: str, where: str) -> float | None:
    if column not in row:
        raise InputError(f"{where}: no column {column!r} (columns: {', '.join(map(str, row))})")
    cell = row[column]
    if not _is_number(cell):
        raise InputError(f"{where}: {column} is {cell!r}, not a finite number")
    return None if cell in (None, "") else float(cell)
