"""A lock file that lets one job train in a run folder, kept fresh by a heartbeat."""

import errno
import json
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

from emu3_megatron.errors import InputError
from emu3_megatron.runs.processes import is_alive, this_process

NAME = "lock.json"
_READS, _SECONDS_BETWEEN_READS = 3, 1.0
_SECONDS_TO_WRITE = 5.0
_NO_LINKS = (errno.ENOSYS, errno.EPERM, errno.ENOTSUP, errno.EMLINK)
# A lock that is older than this has lost its job, where its process cannot be seen.
STALE_SECONDS = 60.0


class RunLock:
    """The lock of a run folder, taken when made.

    Attributes:
        job: a name that no other job has.

    Raises:
        InputError: another job that is alive, or was within the last minute, has it; or the folder
            is a file.
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self.job = secrets.token_hex(8)
        self._me = {**this_process(), "job": self.job}
        if folder.exists() and not folder.is_dir():
            raise InputError(f"run.dir={folder}: is a file; name a folder")
        folder.mkdir(parents=True, exist_ok=True)
        while not self._create():
            holder = read_holder(folder)
            if holder and holder["alive"]:
                raise InputError(_refusal(folder, holder))
            if holder or self._is_half_written_for_long():
                self._remove_stale(holder)

    def beat(self) -> None:
        """Show that the job lives; a lock that another took over shows whether that one does."""
        if self.is_ours():
            os.utime(self.path)

    def is_ours(self) -> bool:
        """Whether the lock still names this job: another may have taken it for stale.

        A file system that fails for a moment does not end a run: it is asked again.
        """
        for _ in range(_READS):
            try:
                return json.loads(self.path.read_text(encoding="utf-8")) == self._me
            except FileNotFoundError:
                return False
            except (OSError, ValueError):
                time.sleep(_SECONDS_BETWEEN_READS)
        return False

    def release(self) -> None:
        if self.is_ours():
            self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Make the lock with its contents, unless there is one."""
        beside = self._beside("new")
        beside.write_text(json.dumps(self._me), encoding="utf-8")
        try:
            return self._place(beside)
        finally:
            beside.unlink()

    def _place(self, beside: Path) -> bool:
        """Give a file the lock's name too, unless there is a lock."""
        try:
            os.link(beside, self.path)  # whole or not at all
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return self._copy(beside)
        return True

    def _copy(self, beside: Path) -> bool:
        """As `_place`, where the file system has no hard links."""
        try:
            with self.path.open("x", encoding="utf-8") as lock:
                lock.write(beside.read_text(encoding="utf-8"))
        except FileExistsError:
            return False
        return True

    def _is_half_written_for_long(self) -> bool:
        """Whether a lock that cannot be read was left so; another job may be writing it now."""
        end = time.monotonic() + _SECONDS_TO_WRITE
        while not _read(self.path) and self.path.exists():
            if time.monotonic() > end:
                return True
            time.sleep(0.1)
        return False

    def _remove_stale(self, holder: dict[str, Any] | None) -> None:
        """Of several jobs that find the same stale lock, the rename lets one remove it.

        Between the look at it and the rename another may have put its own in its place: that goes
        back. Should a third be quicker, the other finds its lock lost and commits nothing.
        """
        gone = self._beside("stale")
        try:
            os.rename(self.path, gone)
        except FileNotFoundError:
            return
        if holder and _read(gone).get("job") != holder.get("job"):
            self._place(gone)
        gone.unlink()

    def _beside(self, what: str) -> Path:
        return self.path.with_name(f".{NAME}.{what}.{self.job}")


def read_holder(folder: Path) -> dict[str, Any] | None:
    """Who has, or had, a run folder: its process, `alive`, and `seen`. None without a lock.

    `seen` says whether `alive` was seen, or follows from `age`, the seconds since the heartbeat.
    """
    path = folder / NAME
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        age = _file_system_time(folder) - path.stat().st_mtime
    except (OSError, ValueError):
        return None
    seen = is_alive(holder)
    alive = age < STALE_SECONDS if seen is None else seen
    return {**holder, "alive": alive, "seen": seen is not None, "age": age}


def _refusal(folder: Path, holder: dict[str, Any]) -> str:
    refusal = (
        f"{folder}: process {holder['pid']} on {holder['host']} is training here; end it first, or "
        "choose another run.dir"
    )
    if holder["seen"]:
        return refusal
    return (
        f"{refusal}; its last heartbeat is {max(holder['age'], 0):.0f} seconds old, at "
        f"{STALE_SECONDS:.0f} it counts as dead"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _file_system_time(folder: Path) -> float:
    """Now, by the clock that dates the folder's files; hosts of a cluster disagree."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock.") as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:  # a folder one may read but not write, for a look at its status
        return time.time()
