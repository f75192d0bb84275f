"""Parquet tables of items: scores, captions, and what was set aside and why; tables of users."""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing
from emu3_megatron.media.files import reason_of, suffix_of
from emu3_megatron.prepare.streams import open_plain

Row = dict[str, Any]

# One schema for a kind, so that a column that is empty in one part has the type it has elsewhere.
_TEXT, _NUMBER, _WHOLE, _FLAG, _TEXTS = "string", "double", "int64", "bool", "texts"
_BYTES, _NUMBERS = "bytes", "numbers"
_DECIDED = {
    "score": _NUMBER,
    "kept": _FLAG,
    "held_out": _FLAG,
    "reason": _TEXT,
    "captions": _TEXTS,
    "caption_languages": _TEXTS,
    "caption_language_scores": _NUMBERS,
    "captions_left_out": _TEXTS,
}
SCHEMAS: dict[str, dict[str, str]] = {
    "images": {
        "source": _TEXT,
        "content": _TEXT,
        "width": _WHOLE,
        "height": _WHOLE,
        "notes": _TEXT,
        "quality": _NUMBER,
        "quality_by": _TEXT,
        "colour": _NUMBER,
        "text_area": _NUMBER,
        "watermark": _NUMBER,
        "nsfw": _NUMBER,
        "error": _TEXT,
        **_DECIDED,
    },
    "clips": {
        "source": _TEXT,
        "content": _TEXT,
        "start_frame": _WHOLE,
        "end_frame": _WHOLE,
        "fps": _NUMBER,
        "seconds": _NUMBER,
        "width": _WHOLE,
        "height": _WHOLE,
        "notes": _TEXT,
        "quality": _NUMBER,
        "quality_by": _TEXT,
        "flow": _NUMBER,
        "flow_by": _TEXT,
        "text_area": _NUMBER,
        "watermark": _NUMBER,
        "nsfw": _NUMBER,
        "error": _TEXT,
        **_DECIDED,
    },
    "text": {"reason": _TEXT},
    "text scores": {
        "text": _TEXT,
        "language": _TEXT,
        "language_score": _NUMBER,
        "emails": _WHOLE,
        "ips": _WHOLE,
        "phones": _WHOLE,
        "reason": _TEXT,
    },
    "languages": {"key": _TEXT, "language": _TEXT, "language_score": _NUMBER},
    "dialogues": {
        "source": _TEXT,
        "row": _WHOLE,
        "turns": _WHOLE,
        "shown": _TEXTS,
        "kept": _FLAG,
        "reason": _TEXT,
    },
    "features": {"source": _TEXT, "kept": _FLAG, "reason": _TEXT},
    "dialogue rows": {
        "source": _TEXT,
        "row": _WHOLE,
        "turns": _WHOLE,
        "shown": _TEXTS,
        "dialogue": _TEXT,
        "error": _TEXT,
    },
    "captions": {"key": _TEXT, "captions": _TEXTS, "error": _TEXT},
    "tar members": {"member": _TEXT, "offset": _WHOLE, "size": _WHOLE, "error": _TEXT},
}
# What one looks like is large, and of use to no reader of a table.
for _kind in ("images", "clips"):
    SCHEMAS[f"{_kind} scores"] = {**SCHEMAS[_kind], "near": _BYTES}


def numbers_of(kind: str) -> list[str]:
    """Columns of a kind's table that hold numbers which are measured of every item."""
    numbers = (_NUMBER, _WHOLE)
    return [name for name, of in SCHEMAS[kind].items() if of in numbers and name not in _DECIDED]


def write_table(
    path: str | Path, schema: str, rows: Sequence[Row], scores: Iterable[str] = ()
) -> None:
    """Write rows as Parquet, whole or not at all; a column that a row lacks is null.

    Args:
        scores: columns of numbers besides those of the schema.
    """
    write_groups(path, schema, [rows], scores)


def write_groups(
    path: str | Path, schema: str, groups: Iterable[Sequence[Row]], scores: Iterable[str] = ()
) -> None:
    """The same of groups of rows, of which one at a time is in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        _TEXT: pa.string(),
        _NUMBER: pa.float64(),
        _WHOLE: pa.int64(),
        _FLAG: pa.bool_(),
        _TEXTS: pa.list_(pa.string()),
        _BYTES: pa.binary(),
        _NUMBERS: pa.list_(pa.float64()),
    }
    columns_of = dict.fromkeys(scores, _NUMBER) | SCHEMAS[schema]
    fields = pa.schema([(name, types[kind]) for name, kind in columns_of.items()])
    with replacing(path) as beside, pq.ParquetWriter(beside, fields) as writer:
        for rows in groups:
            columns = [pa.array([r.get(f.name) for r in rows], f.type) for f in fields]
            writer.write_table(pa.table(columns, fields))


def read_table(path: str | Path) -> list[Row]:
    """Rows of a Parquet file.

    Raises:
        InputError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path).read().to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a readable Parquet file ({reason_of(error)})") from None


def read_groups(
    path: Path, columns: Sequence[str], groups: Sequence[int] | None = None
) -> list[list[Row]]:
    """Some columns of the rows of each group, all of them by default."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        numbers = range(file.num_row_groups) if groups is None else groups
        return [file.read_row_group(n, list(columns)).to_pylist() for n in numbers]


def read_records(path: Path, what: str) -> Iterator[Any]:
    """Rows of a user's .parquet, or values of the lines of a .jsonl, compressed or not.

    Empty lines are none.

    Args:
        what: it is, for the message.

    Raises:
        InputError: it cannot be read.
    """
    if suffix_of(path) == ".parquet":
        yield from read_table(path)
        return
    number = 0
    try:
        # Without the mark that some editors write.
        with io.TextIOWrapper(open_plain(path), "utf-8-sig") as lines:
            for line in lines:
                number += 1
                if not line.isspace():
                    yield json.loads(line)
    except OSError as error:
        raise InputError(f"{path}: not a readable {what} ({error})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable {what} (line {number}: {error})") from None


def read_tables(paths: Iterable[Path]) -> list[Row]:
    return [row for path in paths for row in read_table(path)]
