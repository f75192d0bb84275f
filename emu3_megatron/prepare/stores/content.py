"""The bytes of a file, of an object of a store, or of a stretch of one."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from emu3_megatron.prepare.stores.access import asked, store_of

_BLOCK = 4 << 20  # bytes that are asked for at once


@dataclass(frozen=True)
class Content:
    """A stretch of a file or object.

    Attributes:
        where: a path of this machine, or a URL.
        start: of the stretch.
    """

    where: Path | str
    size: int
    start: int = 0

    def read(self, first: int, end: int) -> bytes:
        """Bytes [first, end) of it.

        Raises:
            OSError: of a path.
            FileNotFoundError, RunFault: of a URL, as `asked` says.
        """
        if first >= end:
            return b""
        first, end = self.start + first, self.start + end
        if isinstance(self.where, str):
            store, path = store_of(self.where)
            return asked(self.where, lambda: store.cat_file(path, start=first, end=end))
        with self.where.open("rb") as file:
            file.seek(first)
            return file.read(end - first)

    def open(self) -> BinaryIO:
        """The same as a file, of which blocks are read as they are needed."""
        return cast(BinaryIO, io.BufferedReader(_Blocks(self.read, self.size), _BLOCK))


class _Blocks(io.RawIOBase):
    def __init__(self, read: Callable[[int, int], bytes], size: int):
        self._read, self._size, self._at = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._read(self._at, min(self._at + len(buffer), self._size))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at
