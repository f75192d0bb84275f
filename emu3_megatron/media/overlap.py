"""Finds files of equal content in two sets: what was trained on must not be tested on."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from emu3_megatron.errors import InputError


def refuse_overlap(tested: Sequence[Path], trained: Iterable[Path]) -> None:
    """Raise InputError, naming a file, where one of `tested` has the content of one of `trained`.

    Names do not matter. The same picture in another format is another content.
    """
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in trained:
        by_size[path.stat().st_size].append(path)
    by_digest: dict[int, dict[bytes, Path]] = {}
    both = []
    for path in tested:
        if (size := path.stat().st_size) not in by_size:
            continue
        if size not in by_digest:
            by_digest[size] = {_digest(other): other for other in by_size[size]}
        if other := by_digest[size].get(_digest(path)):
            both.append((path, other))
    if both:
        path, other = both[0]
        raise InputError(
            f"{path}: has the content of the training file {other} "
            f"({len(both):,} of {len(tested):,} files are in both); test on other files"
        )


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
