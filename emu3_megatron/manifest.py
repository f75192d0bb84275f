"""Folders of large files with `manifest.json`, which holds the size and hash of each.

A folder is filled beside its place, hashed, synced and renamed: under its name it is complete. What
the manifest says besides is the caller's (step, recipe, vocabulary).
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from emu3_megatron import progress
from emu3_megatron.errors import InputError
from emu3_megatron.files import remove_folder, sync

NAME = "manifest.json"
_PIECE = 1 << 20  # bytes hashed at once
_THREADS = 4  # files hashed at once; hashlib lets go of the interpreter's lock


class TakenOver(InputError):
    """A folder belongs to another job by now."""


def require_ours(folder: Path, still_ours: Callable[[], bool]) -> None:
    """Raise TakenOver unless a folder is still this job's."""
    if not still_ours():
        raise TakenOver(f"{folder}: another job has taken this folder over")


def describe(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as read back from where it was written."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(_PIECE))
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(piece):
            digest.update(piece[:read])
            progress.mark()
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def commit(
    beside: Path,
    target: Path,
    about: dict[str, Any],
    known: dict[str, dict[str, Any]],
    still_ours: Callable[[], bool] = lambda: True,
) -> None:
    """Give the folder `beside` its manifest and its name.

    Args:
        about: what the manifest says besides, its `format` among it; JSON.
        known: descriptions of files that their writers have hashed and synced already.
        still_ours: asked before anything under the target's name changes.

    Raises:
        TakenOver: the target is not ours any more; it stays as it is.
    """
    files = dict(known)
    for path in sorted(beside.iterdir()):
        if path.name not in files:
            sync(path)
            files[path.name] = describe(path)
    _write(beside / NAME, {**about, "files": files})
    sync(beside)
    require_ours(target.parent, still_ours)
    gone = beside.with_name(f"{beside.name}.gone.tmp")
    if target.exists():  # not removed here: that takes long, and another job may come meanwhile
        os.rename(target, gone)
    os.rename(beside, target)
    sync(target.parent)
    remove_folder(gone)


def read(folder: Path) -> dict[str, Any]:
    """What a folder's manifest says.

    Raises:
        InputError: it has none, or a damaged one.
    """
    path = folder / NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        digest = manifest.pop("digest")
    except FileNotFoundError:
        raise InputError(f"{folder}: not a complete checkpoint, {NAME} is missing") from None
    except (OSError, ValueError, KeyError, AttributeError):
        raise InputError(f"{path}: damaged; choose another checkpoint") from None
    if digest != _digest(manifest):
        raise InputError(f"{path}: damaged, it is not what was written; choose another checkpoint")
    return manifest


def digest_of(folder: Path) -> str:
    """Hash of all that a folder's manifest says: two folders of one hash hold the same.

    Raises:
        InputError: it has none, or a damaged one.
    """
    return _digest(read(folder))


def first_fault(folder: Path, names: Iterable[str], described: dict[str, Any]) -> str | None:
    """The first of these files that is not what the manifest says, in words, or None."""
    with ThreadPoolExecutor(_THREADS) as pool:
        faults = pool.map(lambda name: _fault(folder / name, described[name]), names)
        return next(filter(None, faults), None)


def _fault(path: Path, expected: dict[str, Any]) -> str | None:
    progress.mark()
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{path}: {size:,} bytes, its manifest says {expected['bytes']:,}"
        if describe(path) != expected:
            return f"{path}: its bytes are not those that were written (SHA-256 differs)"
    except OSError as error:
        return f"{path}: {'missing' if isinstance(error, FileNotFoundError) else error.strerror}"
    return None


def _write(path: Path, manifest: dict[str, Any]) -> None:
    path.write_text(
        json.dumps({**manifest, "digest": _digest(manifest)}, indent=2) + "\n", encoding="utf-8"
    )
    sync(path)


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
