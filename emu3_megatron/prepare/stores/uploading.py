"""Sends a prepared folder to an object store; it counts as there once its manifest is.

An object store renames nothing, but shows an object only once it is whole. So the manifest is the
commit: it goes last, and before the data under it change, it is taken away.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emu3_megatron.errors import InputError
from emu3_megatron.files import write_json
from emu3_megatron.prepare.stores.access import asked, object_state, store_of
from emu3_megatron.prepare.workspace import HELD_OUT, MANIFEST

LISTING = "files.json"
_JOURNAL = ".work/uploaded.json"
_FOLDERS = ("shards", "packs", HELD_OUT)
_AT_ONCE = 8

Files = dict[str, dict[str, Any]]
"""Size and SHA-256 of files, by their paths inside the folder."""


def upload(out: Path, url: str) -> None:
    """Send a prepared folder; objects that are there already are not sent again.

    Raises:
        InputError: another run committed other data there, or the store cannot be reached. What
            was sent stays, and the next upload goes on.
    """
    _Upload(out, url.rstrip("/")).run()


class _Upload:
    """One folder on its way."""

    def __init__(self, out: Path, url: str):
        self._out, self._url = out, url
        self._store, self._path = store_of(url)
        self._journal = _Journal(out / _JOURNAL, url)

    def run(self) -> None:
        files = self._journal.files(self._out)
        manifest = files.pop(MANIFEST)["sha256"]
        committed = self._committed()
        self._refuse_another(committed, manifest)
        missing = self._missing(files, committed is not None)
        if committed == manifest and not missing:
            return
        if committed is not None:
            self._remove(MANIFEST)
        self._send(missing, files)
        self._write(LISTING, (json.dumps(files, indent=2) + "\n").encode())
        self._refuse_another(self._committed(), manifest)  # sending takes hours
        self._journal.commit(manifest)
        self._write(MANIFEST, (self._out / MANIFEST).read_bytes())
        for name in self._journal.others(files):
            self._remove(name)
            self._journal.forget(name)

    def _refuse_another(self, committed: str | None, manifest: str) -> None:
        if committed not in (None, manifest, self._journal.committed):
            raise InputError(
                f"{self._url}/{MANIFEST}: another run committed other data there; choose another "
                "upload"
            )

    def _committed(self) -> str | None:
        """SHA-256 of the manifest that is there."""
        manifest = self._read(MANIFEST)
        return None if manifest is None else hashlib.sha256(manifest).hexdigest()

    def _missing(self, files: Files, is_committed: bool) -> list[str]:
        """Files whose object is not there, or is another one."""
        there = self._objects()
        listed: Files = json.loads(self._read(LISTING) or b"{}") if is_committed else {}
        return [
            name
            for name, file in files.items()
            if name not in there
            or not (
                self._journal.sent(name, file) == list(there[name])
                or (listed.get(name) == file and there[name][0] == file["size"])
            )
        ]

    def _objects(self) -> dict[str, tuple[int, str]]:
        """States of all objects under the URL, by name."""
        self._store.invalidate_cache()
        try:
            found = asked(self._url, partial(self._store.find, self._path, detail=True))
        except FileNotFoundError:
            found = {}
        start = self._path.rstrip("/") + "/"
        return {name.removeprefix(start): object_state(about) for name, about in found.items()}

    def _send(self, names: list[str], files: Files) -> None:
        with (
            ThreadPoolExecutor(_AT_ONCE) as pool,
            tqdm(
                total=sum(files[name]["size"] for name in names),
                desc="upload",
                unit="B",
                unit_scale=True,
                disable=None,
            ) as progress,
        ):
            try:
                for name, state in pool.map(self._send_one, names):
                    self._refuse_short(name, files[name]["size"], state[0])
                    self._journal.add(name, files[name], state)
                    progress.update(files[name]["size"])
            finally:
                pool.shutdown(cancel_futures=True)

    def _send_one(self, name: str) -> tuple[str, tuple[int, str]]:
        where, path = f"{self._url}/{name}", f"{self._path}/{name}"
        self._asked(name, partial(self._store.put_file, str(self._out / name), path))
        return name, object_state(asked(where, partial(self._store.info, path)))

    def _refuse_short(self, name: str, size: int, there: int) -> None:
        if there != size:
            raise InputError(
                f"{self._url}/{name}: {there:,} of {size:,} bytes are there; run the same command "
                "again"
            )

    def _read(self, name: str) -> bytes | None:
        self._store.invalidate_cache()
        try:
            found: bytes = asked(
                f"{self._url}/{name}", partial(self._store.cat_file, f"{self._path}/{name}")
            )
        except FileNotFoundError:
            return None
        return found

    def _write(self, name: str, data: bytes) -> None:
        self._asked(name, partial(self._store.pipe_file, f"{self._path}/{name}", data))

    def _remove(self, name: str) -> None:
        try:
            asked(f"{self._url}/{name}", partial(self._store.rm_file, f"{self._path}/{name}"))
        except FileNotFoundError:
            return

    def _asked(self, name: str, send: partial[Any]) -> None:
        try:
            asked(f"{self._url}/{name}", send)
        except FileNotFoundError:
            raise InputError(f"{self._url}: no such bucket; make it first") from None


class _Journal:
    """What uploads of a folder to one URL have sent, kept beside the folder's work."""

    def __init__(self, path: Path, url: str):
        self._path = path
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if values.get("url") != url:
            values = {"url": url, "committed": None, "sent": {}}
        self._values: dict[str, Any] = values

    @property
    def committed(self) -> str | None:
        """SHA-256 of the last manifest that was, or was about to be, committed."""
        return self._values["committed"]

    def commit(self, manifest: str) -> None:
        self._values["committed"] = manifest
        self._write()

    def files(self, out: Path) -> Files:
        """What there is to send. Files that did not change are not read again."""
        files: Files = {}
        for path in _paths(out):
            name, state = path.relative_to(out).as_posix(), path.stat()
            known = self._values["sent"].get(name, {})
            sha256 = known.get("sha256")
            if known.get("mtime_ns") != state.st_mtime_ns or known.get("size") != state.st_size:
                with path.open("rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            files[name] = {"size": state.st_size, "sha256": sha256}
        return files

    def sent(self, name: str, file: dict[str, Any]) -> list[Any] | None:
        """State of the object when this content was sent; None when it was not."""
        known = self._values["sent"].get(name, {})
        same = all(known.get(key) == value for key, value in file.items())
        return known["object"] if same else None

    def add(self, name: str, file: dict[str, Any], state: tuple[int, str]) -> None:
        mtime_ns = (self._path.parent.parent / name).stat().st_mtime_ns
        self._values["sent"][name] = {**file, "mtime_ns": mtime_ns, "object": list(state)}
        self._write()

    def others(self, files: Iterable[str]) -> list[str]:
        """Objects of an earlier upload that are none of these files any more."""
        return sorted(set(self._values["sent"]) - set(files))

    def forget(self, name: str) -> None:
        del self._values["sent"][name]
        self._write()

    def _write(self) -> None:
        write_json(self._path, self._values)


def _paths(out: Path) -> Iterator[Path]:
    """Files of a prepared folder, without those of its work, and what else may lie there."""
    yield from sorted(p for p in out.iterdir() if p.suffix in (".json", ".parquet") and p.is_file())
    for folder in _FOLDERS:
        yield from sorted(path for path in (out / folder).rglob("*") if path.is_file())
