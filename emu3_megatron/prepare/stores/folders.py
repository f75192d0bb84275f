"""A folder in an object store, and the tars in a folder, read as a folder of files is."""

import errno
import io
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, BinaryIO

from emu3_megatron.media.files import (
    File,
    Found,
    UnreadableError,
    name_of,
    path_of,
    search,
    suffix_of,
    unescaped,
)
from emu3_megatron.prepare.items import with_progress
from emu3_megatron.prepare.stores.access import asked, store_of
from emu3_megatron.prepare.stores.content import Content
from emu3_megatron.prepare.stores.tars import Member, read_index
from emu3_megatron.prepare.workspace import file_state

MARK = "!"  # between the name of a tar and that of a member
TAR = ".tar"
_COPIED = 4 << 20  # bytes that are copied at once

State = tuple[str, int, int | str]
"""Name, size, and what changes when the content does."""


@dataclass(frozen=True)
class Tar:
    """A tar, and the table of what it holds."""

    content: Content
    state: State
    index: Path


@dataclass(frozen=True, eq=False)
class StoredFolder:
    """Files by their names, which are as those of a folder's; of a member TAR!NAME.

    Attributes:
        root: the folder, or the URL of one, that names are inside of.
        cache: where a file lies while something reads it that can only read from this machine.
        tars: by name.
        listed: states of the files that were found; None when a folder of this machine is searched.
            Workers have none.
    """

    root: Path | str
    cache: Path
    tars: Mapping[str, Tar] = field(default_factory=dict)
    listed: Mapping[str, State] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "listed": None}

    def __str__(self) -> str:
        return str(self.root)

    def is_dir(self) -> bool:
        return True

    def file(self, name: str) -> File:
        """The file of this name, whether it is there or not."""
        if isinstance(self.root, Path) and name not in self.tars and not self.tar_of(name):
            return path_of(self.root, name)
        return StoredFile(self, name)

    def search(self, suffixes: Collection[str]) -> Found:
        """The files that end in one of `suffixes`, by name; damaged tars are among them."""
        found = Found[File]()
        names = [name for name in self._plain(found) if name not in self.tars]
        for name, tar in self.tars.items():
            members = read_index(tar.index)
            names += [f"{name}{MARK}{member}" for member in members if member]
            if "" in members:
                found.paths.append(StoredFile(self, name))
        for name in names:
            file = self.file(name)
            if (suffix := suffix_of(file)) in suffixes:
                found.paths.append(file)
            else:
                found.others.setdefault(suffix, []).append(file)
        found.paths.sort(key=self.name_of)
        return found

    def _plain(self, found: Found[File]) -> list[str]:
        if self.listed is not None:
            return list(self.listed)
        assert isinstance(self.root, Path), "what is at a URL was listed"
        searched = search(self.root, ())
        found.unread.update(searched.unread)
        return [self.name_of(path) for paths in searched.others.values() for path in paths]

    def name_of(self, file: File) -> str:
        if not isinstance(file, Path):
            return file.source
        assert isinstance(self.root, Path)
        return name_of(file, self.root)

    def state(self, name: str) -> State:
        """By what a file is recognised without reading it. Raises OSError where there is none."""
        if found := self.tar_of(name):
            tar, member = found[0], self._member(name, *found)
            return name, member.size, f"{tar.state} {member.offset}"
        if name in self.tars:
            return self.tars[name].state
        if isinstance(self.root, Path):
            return file_state(path_of(self.root, name), name)
        assert self.listed is not None, "states are asked for where sources are listed"
        if name not in self.listed:
            raise _no_such(name)
        return self.listed[name]

    def content(self, name: str) -> Content:
        """Where the bytes of a file lie.

        Raises:
            UnreadableError: a member that its tar does not hold whole, or a damaged tar.
            FileNotFoundError: it is not there.
        """
        if found := self.tar_of(name):
            member = self._member(name, *found)
            if member.error:
                raise UnreadableError(name, member.error)
            return replace(found[0].content, start=member.offset, size=member.size)
        if name in self.tars:
            raise UnreadableError(name, read_index(self.tars[name].index)[""].error or "damaged")
        if isinstance(self.root, Path):
            path = path_of(self.root, name)
            return Content(path, path.stat().st_size)
        return Content(self._url(name), self._size(name))

    def read(self, name: str) -> bytes:
        """All of a file's bytes; raises as `content` does."""
        if isinstance(self.root, str) and not self.tar_of(name) and name not in self.tars:
            self._refuse_unlisted(name)
            store, path = store_of(self._url(name))
            return asked(self._url(name), partial(store.cat_file, path))
        content = self.content(name)
        data = content.read(0, content.size)
        if len(data) < content.size:
            raise UnreadableError(name, f"cut off: {len(data):,} of {content.size:,} bytes")
        return data

    def _url(self, name: str) -> str:
        return f"{self.root}/{unescaped(name).decode('utf-8', 'surrogateescape')}"

    def _size(self, name: str) -> int:
        self._refuse_unlisted(name)
        if self.listed is not None:
            return self.listed[name][1]
        store, path = store_of(self._url(name))
        return int(asked(self._url(name), partial(store.size, path)))

    def _refuse_unlisted(self, name: str) -> None:
        """What was not found needs no request."""
        if self.listed is not None and name not in self.listed:
            raise _no_such(name)

    def tar_of(self, name: str) -> tuple[Tar, str] | None:
        """The tar of a member, and the member's name in it."""
        end = name.find(TAR + MARK)
        while end >= 0:
            end += len(TAR)
            if tar := self.tars.get(name[:end]):
                return tar, name[end + len(MARK) :]
            end = name.find(TAR + MARK, end)
        return None

    def _member(self, name: str, tar: Tar, member: str) -> Member:
        if found := read_index(tar.index).get(member):
            return found
        raise _no_such(name)


@dataclass(frozen=True)
class StoredFile:
    """A file of a `StoredFolder`; what reads a path can read it.

    Attributes:
        source: its name.
    """

    folder: StoredFolder
    source: str

    def __str__(self) -> str:
        return f"{self.folder}/{self.source}"

    @property
    def name(self) -> str:
        return PurePosixPath(self.source).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.source).suffix

    @property
    def stem(self) -> str:
        return PurePosixPath(self.source).stem

    def with_suffix(self, suffix: str) -> "StoredFile":
        """The file beside it that belongs to it: in a tar, as WebDataset says, that of its key.

        A key ends at the first point in the name.
        """
        path = PurePosixPath(self.source)
        if self.is_member:
            tar, mark, name = path.name.rpartition(TAR + MARK)
            path = path.with_name(tar + mark + name.partition(".")[0] + suffix)
        else:
            path = path.with_suffix(suffix)
        return StoredFile(self.folder, path.as_posix())

    @property
    def is_member(self) -> bool:
        """Does it lie in a tar?"""
        return self.folder.tar_of(self.source) is not None

    def open(self, mode: str = "rb") -> BinaryIO:
        assert mode == "rb", "inputs are read only"
        return self.folder.content(self.source).open()

    def read_bytes(self) -> bytes:
        return self.folder.read(self.source)

    def read_text(self, encoding: str) -> str:
        with io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding) as text:
            return text.read()

    def stat(self) -> SimpleNamespace:
        """Its size, as `st_size`, where sources are listed."""
        return SimpleNamespace(st_size=self.folder.state(self.source)[1])

    @contextmanager
    def copied(self) -> Iterator[Path]:
        """A copy in the cache, for what can only read from this machine."""
        # A folder that ends in .tmp: the next run removes it when this one is killed.
        folder = self.folder.cache / f".{uuid.uuid4().hex}.tmp"
        folder.mkdir(parents=True)
        try:
            path = folder / f"copy{self.suffix}"
            with self.open() as file, path.open("wb") as copy:
                for block in with_progress(iter(partial(file.read, _COPIED), b"")):
                    copy.write(block)
            yield path
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def on_this_machine(file: File) -> Iterator[Path]:
    """A file as one of this machine, as long as it is read."""
    if isinstance(file, Path):
        yield file
        return
    with file.copied() as path:
        yield path


def _no_such(name: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "No such file or directory", name)
