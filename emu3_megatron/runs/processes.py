"""Says which process this is, and whether one that said so is alive, where that can be seen."""

import os
import socket
from pathlib import Path
from typing import Any

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def this_process() -> dict[str, Any]:
    """What tells this process from every other: of another host, boot, container or time."""
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "namespace": _namespace(),
        "pid": os.getpid(),
        "started": start_time("self"),
    }


def is_alive(process: dict[str, Any]) -> bool | None:
    """Whether the process lives. None: it cannot be seen from here.

    Containers of one host may share its name and have process numbers of their own; after a boot
    numbers begin anew.
    """
    here = this_process()
    places = ("host", "boot", "namespace")
    if any(here[place] is None or process.get(place) != here[place] for place in places):
        return None
    if process.get("started") is None or os.readlink("/proc/self") != str(os.getpid()):
        return None  # /proc shows the processes of another namespace, or hides some
    return start_time(process["pid"]) == process["started"]


def start_time(pid: int | str) -> str | None:
    """When a process of this namespace started, in kernel ticks: tells it from a later of its id.

    None if there is no such process, or only what is left of it.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def _boot() -> str | None:
    try:
        return _BOOT.read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _namespace() -> str | None:
    """Of process numbers."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
