"""What stands around a run: its folder's lock, a watchdog, signals, and the record of events."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from emu3_megatron.config import Recipe
from emu3_megatron.errors import InputError, RunEnded
from emu3_megatron.parallel import Mesh
from emu3_megatron.parallel.votes import on_first_rank
from emu3_megatron.runs.communication import Communication, HostClock, StreamClock
from emu3_megatron.runs.events import Events
from emu3_megatron.runs.heartbeats import FOLDER
from emu3_megatron.runs.lock import RunLock
from emu3_megatron.runs.signals import StopRequest
from emu3_megatron.runs.watchdog import Watchdog


@dataclass(frozen=True)
class Run:
    """A run that is under way on all ranks."""

    events: Events
    watchdog: Watchdog
    stop: StopRequest
    communication: Communication


@contextmanager
def supervised(recipe: Recipe, mesh: Mesh) -> Iterator[Run]:
    """Hold the run's folder and watch over this rank.

    Raises:
        InputError: on all ranks, another job has the folder.
    """
    folder = recipe.run.dir
    locks: list[RunLock] = []  # the first rank's
    on_first_rank(lambda: locks.append(RunLock(folder)))
    beat = locks[0].beat if locks else lambda: None
    clock = StreamClock() if mesh.device.type == "cuda" else HostClock()
    events = Events(folder, mesh.is_first)
    watchdog = Watchdog(folder, mesh, recipe.run.hang_seconds, beat)
    try:
        with watchdog, StopRequest() as stop, Communication(clock) as communication:
            yield Run(events, watchdog, stop, communication)
    except (InputError, RunEnded):
        raise
    except Exception as error:  # who looks at the run's status will not have seen its traceback
        events.add("failed", watchdog.step, why=f"{type(error).__name__}: {error}")
        raise
    finally:
        for lock in locks:
            lock.release()
        for left in (folder / FOLDER, folder):  # by a run that was refused
            with suppress(OSError):
                left.rmdir()
