"""What a tar holds, listed once into a table: members are then read by their place in it."""

import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from emu3_megatron.media.files import escaped
from emu3_megatron.prepare.items import Failed, attempt, with_progress
from emu3_megatron.prepare.stores.content import Content
from emu3_megatron.prepare.tables import Row, read_table, write_table

_BLOCK = 512  # bytes that a tar counts in


@dataclass(frozen=True)
class Member:
    """Where a file lies in a tar, in bytes; `error` says why it cannot be read."""

    offset: int
    size: int
    error: str | None


Index = dict[str, Member]
"""Members by their names, in order. What is wrong with a tar itself has the name ''."""


@dataclass(frozen=True)
class IndexTask:
    """A tar, and the table to write of its members; `size` in bytes."""

    out: Path
    name: str
    content: Content

    @property
    def size(self) -> int:
        return self.content.size


class IndexTars:
    """Writes what tars hold. Of a damaged one, what stands before the damage."""

    def __call__(self, task: IndexTask) -> None:
        rows: list[Row] = []
        found = attempt(task.name, lambda: rows.extend(_rows(task.content)))
        if isinstance(found, Failed):
            rows.append(_row("", error=f"damaged: {found.reason}"))
        write_table(task.out, "tar members", rows)


def _rows(content: Content) -> Iterator[Row]:
    seen: Counter[str] = Counter()
    with content.open() as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in with_progress(iter(tar.next, None)):
            tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
            if not member.isreg():
                continue
            name = PurePosixPath(member.name).as_posix()
            name = escaped(name.encode("utf-8", "surrogateescape"))
            seen[name] += 1
            error = _fault(member, seen[name], content.size)
            yield _row(_known(name, seen[name]), member.offset_data, member.size, error)
            if member.offset_data + member.size > content.size:
                return  # nothing follows what is cut off
        if error := _fault_of_end(content, tar.offset):
            yield _row("", error=error)


def _row(name: str, offset: int = 0, size: int = 0, error: str | None = None) -> Row:
    return {"member": name, "offset": offset, "size": size, "error": error}


def _known(name: str, number: int) -> str:
    """Of members of one name, a name for each; its suffix stays."""
    if number == 1:
        return name
    path = PurePosixPath(name)
    return path.with_name(f"{path.stem} (number {number}){path.suffix}").as_posix()


def _fault(member: tarfile.TarInfo, number: int, tar_size: int) -> str | None:
    if number > 1:
        return "the tar has this name more than once; the first is read"
    if member.sparse is not None:
        return "a sparse file, which is not read in a tar"
    there = max(0, tar_size - member.offset_data)
    if there < member.size:
        return f"cut off, as its tar is: {there:,} of {member.size:,} bytes are there"
    return None


def _fault_of_end(content: Content, end: int) -> str | None:
    """Why more may have been there: tarfile takes any block that is no header for the end.

    A tar ends with blocks of zeros.
    """
    block = content.read(end, min(end + _BLOCK, content.size))
    if not block:
        return "has no end mark: it may be cut off"
    return f"damaged at byte {end:,}; what follows is left out" if any(block) else None


@lru_cache(maxsize=4)
def read_index(path: Path) -> Index:
    """What `IndexTars` wrote."""
    rows = read_table(path)
    return {row["member"]: Member(row["offset"], row["size"], row["error"]) for row in rows}
