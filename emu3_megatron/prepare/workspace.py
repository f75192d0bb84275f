"""The output folder of a prepare recipe: its layout, and what in it is finished.

OUT/
  images.parquet, clips.parquet   every item with its scores, kept or why not
  text.parquet                    what of the text could not be used
  shards/                         KIND-NUMBER-HASH.bin, .idx, .json
  packs/NAME.pack/
  held-out/                       shards and packs of what is held out
  report.json                     the same for reading by programs, with the time of each stage
  manifest.json                   counts, hashes, settings
  .work/                          scores, captions and parts, named by a hash of what went in
"""

import fcntl
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from emu3_megatron.config.prepare import ClipsConfig, ImagesConfig, PrepareRecipe, TextConfig
from emu3_megatron.errors import InputError
from emu3_megatron.files import write_json
from emu3_megatron.media.files import F, File, Folder, Found, file_named, path_of
from emu3_megatron.prepare.executors import MakeWorker, run_tasks
from emu3_megatron.prepare.progress import Progress

FORMAT = "emu3-megatron/prepared/1"
MANIFEST = "manifest.json"
HELD_OUT = "held-out"
# By which folders of other commands are known.
_OF_OTHERS = ("run.json", "checkpoints", "config.json")

T = TypeVar("T")


class FileTask(Protocol):
    """A task that makes a file."""

    @property
    def out(self) -> Path: ...

    @property
    def size(self) -> int: ...


def digest(*values: Any) -> str:
    """A hash of values that JSON can hold."""
    text = json.dumps(values, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


@dataclass(frozen=True)
class Workspace:
    """An output folder at work.

    Attributes:
        left_out: of each kind, how many files of its source folder were not read, by suffix.
    """

    recipe: PrepareRecipe
    is_held_out: bool = False
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.recipe.out / HELD_OUT if self.is_held_out else self.recipe.out

    @property
    def held_out(self) -> "Workspace":
        """Where what is held out becomes shards."""
        return Workspace(self.recipe, is_held_out=True)

    @property
    def progress(self) -> Progress:
        return Progress(self.recipe.out)

    def table(self, kind: str) -> Path:
        return self.out / f"{kind}.parquet"

    def found(self, kind: str, found: Found[F], used: Iterable[File | None] = ()) -> Found[F]:
        """Remember what of a kind's source is left out.

        Args:
            used: files that are read otherwise.
        """
        self.left_out[kind] = found.left_out(path for path in used if path)
        return found

    def work(self, kind: str, step: str) -> Path:
        return self.out / ".work" / f"{kind}-{step}"

    def run(
        self, make: MakeWorker, tasks: Sequence[FileTask], label: str, on_device: bool = False
    ) -> None:
        """Run the tasks whose file is not there yet, and remove files that no task makes.

        Args:
            on_device: the worker computes on `run.device`; any other has all cores to itself.
        """
        if tasks:
            tasks[0].out.parent.mkdir(parents=True, exist_ok=True)
            wanted = {task.out.name for task in tasks}
            for path in tasks[0].out.parent.iterdir():
                if path.name not in wanted:
                    path.unlink()
        missing = [task for task in tasks if not task.out.is_file()]
        self.run_all(make, missing, label, on_device)

    def run_all(
        self, make: MakeWorker, tasks: Sequence[Any], label: str, on_device: bool = False
    ) -> None:
        config = self.recipe.run
        if not on_device:
            config = config.model_copy(update={"device": "cpu"})
        if tasks:
            with self.progress.stage(label, sum(task.size for task in tasks)):
                run_tasks(make, tasks, config, label)

    def finished(self, kind: str, key: str) -> dict[str, Any] | None:
        """What was made of a kind under this key; None when it was not finished."""
        path = self.out / ".work" / f"{kind}.json"
        if not path.is_file():
            return None
        done = json.loads(path.read_text(encoding="utf-8"))
        return done["made"] if done["key"] == key else None

    def finish(self, kind: str, key: str, made: dict[str, Any]) -> None:
        """A kind's shards are there: remember what was made."""
        write_json(self.out / ".work" / f"{kind}.json", {"key": key, "made": made})

    def drop_parts(self, kind: str) -> None:
        """Remove the parts of shards that are there."""
        shutil.rmtree(self.work(kind, "parts"), ignore_errors=True)


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Hold the output folder. What is refused before it has made anything leaves nothing there.

    Raises:
        InputError: another run holds it, or it is a run of training or a tokenizer, which a
            manifest of prepared data would hide.
    """
    for name in _OF_OTHERS:
        if (out / name).exists():
            raise InputError(f"{out}: no folder of prepared data, it holds {name}; choose another")
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(out):
            _remove_unfinished(out)
            try:
                yield
            except InputError:
                _remove_if_nothing_was_made(out)
                raise
    finally:
        if is_new:
            with suppress(OSError):  # there is something in it
                out.rmdir()


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the lock's file, which is there only while it is held."""
    path = out / ".lock"
    with path.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{out}: another run is at work there; wait for its end") from None
        except OSError as error:  # Lustre without -o flock, say
            reason = f"cannot be locked ({error.strerror}); choose a file system that has flock"
            raise InputError(f"{out}: {reason}") from None
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
            raise InputError(f"{out}: another run has just ended there; start it again")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _remove_if_nothing_was_made(out: Path) -> None:
    """The record and the report of a run that came to no work."""
    found = {path.name for folder in (out, out / ".work") for path in folder.glob("*")}
    if found <= {".lock", ".work", "progress.json", "report.json"}:
        shutil.rmtree(out / ".work", ignore_errors=True)
        (out / "report.json").unlink(missing_ok=True)


def _remove_unfinished(out: Path) -> None:
    """What a killed run left beside its place; nothing of what else may lie in the folder."""
    ours = [*out.glob(f".{MANIFEST}.*.tmp"), *out.glob(".*.parquet.*.tmp")]
    for folder in ("shards", "packs", ".work", HELD_OUT):
        ours += (out / folder).rglob(".*.tmp")
    for path in ours:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def read_manifest(out: Path) -> dict[str, Any] | None:
    """What a prepared folder says of itself; None when it says nothing.

    Raises:
        InputError: it is not a manifest of ours.
    """
    path = out / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{path}: not the manifest of prepared data; choose another folder"
        ) from None
    return manifest


def chunks(items: Sequence[T], size: int) -> list[list[T]]:
    return [list(items[i : i + size]) for i in range(0, len(items), size)]


def stable_chunks(names: Sequence[str], size: int) -> list[list[str]]:
    """Names in order, about `size` a chunk, cut where their hashes say so.

    A file that comes or goes changes no chunk but its own, and so no scores but those.
    """
    ends = [i + 1 for i, name in enumerate(names) if int(digest(name), 16) % size == 0]
    edges = sorted({0, *ends, len(names)})
    return [list(names[first:end]) for first, end in itertools.pairwise(edges)]


def folder_of(config: ImagesConfig | ClipsConfig | TextConfig) -> Folder:
    """The source of a kind, which `open_sources` has opened."""
    assert not isinstance(config.source, str), "a URL is opened first"
    return config.source


def file_state(path: Path, source: str) -> tuple[str, int, int]:
    """By what a file is recognised without reading it. Raises OSError where there is none."""
    state = path.stat()
    return source, state.st_size, state.st_mtime_ns


def state_or_missing(folder: Folder, source: str) -> tuple[str, int, int | str]:
    """The same of a file that `name_of` named; also when it went away, as reading it will tell."""
    try:
        if not isinstance(folder, Path):
            return folder.state(source)
        return file_state(path_of(folder, source), source)
    except (OSError, ValueError):
        return source, -1, -1


def state_of_named(folder: Path, name: str) -> tuple[str, int, int]:
    """The same of a file that a user's table names; also where there is none."""
    try:
        return file_state(file_named(folder, name), name)
    except (OSError, ValueError):
        return name, -1, -1
