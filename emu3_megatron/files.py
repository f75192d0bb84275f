"""Atomic file writes: written beside, synced, renamed."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from emu3_megatron import progress


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path`; on success it is synced and renamed over it.

    An exception leaves `path` as it was and removes what was written. A symbolic link stays: what
    it points to is replaced.
    """
    path = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        if beside.is_file():
            sync(beside)
        elif path.is_dir():
            shutil.rmtree(path)
        os.replace(beside, path)
        sync(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk names no file
            error.filename = str(path)
        raise
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        else:
            beside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk.

    Some file systems cannot flush a folder by itself, and say so: that is no failure.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder, file by file, with a mark of progress for each; what resists stays."""
    for path in folder.rglob("*"):
        if not path.is_dir():
            with suppress(OSError):
                path.unlink()
            progress.mark()
    shutil.rmtree(folder, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    with replacing(path) as beside:
        beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
