"""Files of a folder."""

from collections.abc import Iterable
from pathlib import Path

from emu3_megatron.errors import InputError


def find_files(source: str | Path, suffixes: Iterable[str]) -> list[Path]:
    """The files in a folder, and the folders in it, that end in one of `suffixes`, sorted.

    Raises:
        InputError: no such folder, or no such files in it.
    """
    source, suffixes = Path(source), sorted(suffixes)
    if not source.is_dir():
        raise InputError(f"{source}: no such folder")
    named = (path for path in source.rglob("*") if path.suffix.lower() in suffixes)
    paths = sorted(path for path in named if path.is_file())
    if not paths:
        raise InputError(f"{source}: no file ends in one of {', '.join(suffixes)}")
    return paths
