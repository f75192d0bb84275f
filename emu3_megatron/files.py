"""Atomic file writes: written beside, synced, renamed."""

import errno
import json
import os
import re
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
    except Exception as error:
        if failed := failed_write(error, path):
            raise failed from error
        raise
    finally:
        if beside.is_dir():
            shutil.rmtree(beside)
        else:
            beside.unlink(missing_ok=True)


def failed_write(error: Exception, path: Path) -> OSError | None:
    """What stands for an error where it says that `path` could not be written; else None.

    A full disk names no file, and safetensors, torch and FFmpeg have errors of their own for it.
    """
    text = str(error)
    if isinstance(error, OSError):
        if error.errno is None or error.filename is not None:
            return None
        return OSError(error.errno, error.strerror or os.strerror(error.errno), str(path))
    if number := re.search(r"\(os error (\d+)\)", text):  # safetensors
        return OSError(int(number[1]), os.strerror(int(number[1])), str(path))
    if re.search(r"unexpected pos \d+ vs|file write failed|PytorchStreamWriter failed", text):
        return OSError(
            errno.ENOSPC, "could not be written to its end; is the disk full?", str(path)
        )
    return None


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
