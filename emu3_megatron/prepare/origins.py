"""Counts items by the suffix of their file, and by their source: a folder, or a file of many."""

from collections.abc import Iterable
from pathlib import PurePosixPath

from emu3_megatron.media.files import COMPRESSED

# Files that hold many items; each is a source of its own.
_OF_MANY = (".jsonl", ".ndjson", ".json", ".parquet")

Counts = dict[str, dict[str, int]]
"""`found` and `kept` of each suffix, or each source."""


def origins_of(items: Iterable[tuple[str, bool]]) -> dict[str, Counts]:
    """Items by the suffix of their file and by their source, from file names and `kept`."""
    return count_origins((name, 1, int(kept)) for name, kept in items)


def count_origins(files: Iterable[tuple[str, int, int]]) -> dict[str, Counts]:
    """The same of how many items each file has, and how many of them are kept."""
    found: dict[str, Counts] = {"by_suffix": {}, "by_source": {}}
    for name, number, kept in files:
        keys = {"by_suffix": _suffix(name), "by_source": _source(name)}
        for by, key in keys.items():
            counts = found[by].setdefault(key, {"found": 0, "kept": 0})
            counts["found"] += number
            counts["kept"] += kept
    return {by: dict(sorted(counts.items())) for by, counts in found.items()}


def _suffix(name: str) -> str:
    path = PurePosixPath(name.lower())
    if path.suffix in COMPRESSED:
        return PurePosixPath(path.stem).suffix + path.suffix
    return path.suffix or "without a suffix"


def _source(name: str) -> str:
    """The first folder of a file's path; of what lies in none the file itself, or '.'."""
    first, _, rest = name.partition("/")
    if rest:
        return f"{first}/"
    return first if any(kind in _suffix(name) for kind in _OF_MANY) else "."
