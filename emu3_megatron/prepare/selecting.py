"""Keeps the best of what all other rules keep, by the weighted mean of score columns."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from emu3_megatron.config.prepare import SelectionConfig
from emu3_megatron.errors import InputError
from emu3_megatron.media.files import spelling
from emu3_megatron.prepare.tables import Row, numbers_of, read_records

# Where a row stands, and the row; by file, and by the first frame where the table is of clips.
Listed = dict[tuple[str, int | None], tuple[str, Row]]


def select_best(kind: str, rows: Sequence[Row], config: SelectionConfig) -> dict[str, Any]:
    """Fill `score` of what is kept so far, and set aside what has none or is not among the best.

    Returns:
        What the manifest says of the selection.

    Raises:
        InputError: no such column, or a score that is not a number.
    """
    candidates = [row for row in rows if row["kept"]]
    _add_scores(kind, candidates, config)
    # Equal scores: by name, so that the same files give the same selection on every machine.
    scored = sorted(
        (row for row in candidates if row["kept"]),
        key=lambda row: (-row["score"], row["source"], row.get("start_frame") or 0),
    )
    chosen = scored[: _number_of_best(scored, config)]
    for row in scored[len(chosen) :]:
        row["kept"], row["reason"] = False, f"not selected: score {row['score']:.6g}"
    return {
        **config.model_dump(mode="json", exclude_none=True, exclude={"file_column"}),
        "scored": len(scored),
        "selected": len(chosen),
        "least": chosen[-1]["score"] if chosen else None,
    }


def _number_of_best(scored: Sequence[Row], config: SelectionConfig) -> int:
    if config.top is not None:
        return math.ceil(config.top * len(scored))
    return sum(row["score"] >= config.at_least for row in scored)


def _add_scores(kind: str, rows: Sequence[Row], config: SelectionConfig) -> None:
    """The mean of each row's columns; columns of the table come before ours of that name."""
    listed = _read(config.table, config.file_column) if config.table else {}
    known = {column for _, found in listed.values() for column in found}
    own = numbers_of(kind)
    for column in config.columns:
        if column not in known and column not in own:
            raise InputError(_no_such_column(kind, column, config.table, sorted(known), own))
    weights = sum(config.columns.values())
    for row in rows:
        values = _values(row, listed, config.columns)
        row |= {column: value for column, value in values.items() if column not in own}
        if missing := [column for column in config.columns if column not in values]:
            row["kept"], row["reason"] = False, f"no score: {', '.join(missing)}"
        else:
            total = math.fsum(weight * values[c] for c, weight in config.columns.items())
            row["score"] = total / weights


def _values(row: Row, listed: Listed, columns: Iterable[str]) -> dict[str, float]:
    """What a row has in these columns."""
    nothing: tuple[str, Row] = ("", {})
    name = spelling(row["source"])
    of_file = listed.get((name, None), nothing)
    where, found = listed.get((name, row.get("start_frame")), of_file)
    both = {column: found.get(column, row.get(column)) for column in columns}
    return {
        column: _number(value, f"{where}: {row['source']}: {column}")
        for column, value in both.items()
        if value is not None
    }


def _read(table: Path, file_column: str) -> Listed:
    """Rows of the user's table, each with where it stands."""
    rows: Listed = {}
    for number, row in enumerate(read_records(table, "table of scores"), 1):
        where = f"{table}: row {number}"
        if not isinstance(row, dict) or file_column not in row:
            raise InputError(f"{where}: has no column {file_column!r}")
        key = (spelling(str(row[file_column])), row.get("start_frame"))
        if key in rows:
            raise InputError(f"{where}: {key[0]} is in another row too; leave one of them")
        rows[key] = (where, row)
    return rows


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where} is {value!r}, not a number; correct it, or leave it empty")
    return float(value)


def _no_such_column(
    kind: str, column: str, table: Path | None, known: Sequence[str], own: Sequence[str]
) -> str:
    measured = f"{kind} have {', '.join(own)}"
    if table is None:
        return (
            f"{kind}.select.columns: no score {column!r}; {measured}, and "
            f"{kind}.select.table can add others"
        )
    return f"{table}: has no column {column!r}, only {', '.join(known)}; {measured}"
