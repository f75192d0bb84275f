"""A lock file that lets one job train in a run folder, kept fresh by a heartbeat."""

import json
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from emu3_megatron.errors import InputError

NAME = "lock.json"
_READS, _SECONDS_BETWEEN_READS = 3, 1.0
STALE_SECONDS = 60.0  # a lock of another host that is older than this has lost its job


class RunLock:
    """The lock of a run folder, taken when made.

    Raises:
        InputError: another job that is alive, or was within the last minute, has it; or the folder
            is a file.
    """

    def __init__(self, folder: Path):
        self.path = folder / NAME
        if folder.exists() and not folder.is_dir():
            raise InputError(f"run.dir={folder}: is a file; name a folder")
        folder.mkdir(parents=True, exist_ok=True)
        while not self._create():
            holder = read_holder(folder)
            if holder and holder["alive"]:
                raise InputError(
                    f"{folder}: process {holder['pid']} on {holder['host']} is training here; "
                    "end it first, or choose another run.dir"
                )
            self._remove_stale()

    def beat(self) -> None:
        """Show that the job lives; a lock that another took over shows whether that one does."""
        if self.is_ours():
            os.utime(self.path)

    def is_ours(self) -> bool:
        """Whether the lock still names this process: another job may have taken it for stale.

        A file system that fails for a moment does not end a run: it is asked again.
        """
        for _ in range(_READS):
            try:
                return json.loads(self.path.read_text()) == _me()
            except FileNotFoundError:
                return False
            except (OSError, ValueError):
                time.sleep(_SECONDS_BETWEEN_READS)
        return False

    def release(self) -> None:
        if self.is_ours():
            self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Make the lock with its contents, unless there is one: a link is made whole or not."""
        me = _me()
        beside = self.path.with_name(f".{NAME}.{me['host']}.{me['pid']}")
        beside.write_text(json.dumps(me))
        try:
            os.link(beside, self.path)
        except FileExistsError:
            return False
        finally:
            beside.unlink()
        return True

    def _remove_stale(self) -> None:
        """Of several jobs that find the same stale lock, the rename lets one remove it."""
        gone = self.path.with_name(f".{NAME}.stale.{socket.gethostname()}.{os.getpid()}")
        try:
            os.rename(self.path, gone)
        except FileNotFoundError:
            return
        gone.unlink()


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": start_time(os.getpid())}


def read_holder(folder: Path) -> dict[str, Any] | None:
    """Who has, or had, a run folder: host, pid, and whether it is alive. None without a lock."""
    path = folder / NAME
    try:
        holder = json.loads(path.read_text())
        age = _file_system_time(folder) - path.stat().st_mtime
    except (OSError, ValueError):
        return None
    if holder["host"] == socket.gethostname():
        alive = holder["started"] is not None and start_time(holder["pid"]) == holder["started"]
    else:
        alive = age < STALE_SECONDS
    return {**holder, "alive": alive, "age": age}


def start_time(pid: int) -> str | None:
    """When a process of this host started, in kernel ticks: tells it from a later one of its id.

    None if there is no such process, or only what is left of it.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _file_system_time(folder: Path) -> float:
    """Now, by the clock that dates the folder's files; hosts of a cluster disagree."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock.") as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:  # a folder one may read but not write, for a look at its status
        return time.time()
