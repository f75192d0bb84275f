"""Sets up what surrounds a run: the lock of its folder, watchdog, signals, events."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from emu3_megatron.config.runs import RunConfig
from emu3_megatron.errors import InputError, RunEnded
from emu3_megatron.parallel import Mesh
from emu3_megatron.parallel.votes import on_first_rank
from emu3_megatron.runs.communication import Communication, HostClock, StreamClock
from emu3_megatron.runs.events import Events
from emu3_megatron.runs.heartbeats import FOLDER
from emu3_megatron.runs.interfaces import Run
from emu3_megatron.runs.lock import RunLock
from emu3_megatron.runs.metrics.log import Log
from emu3_megatron.runs.metrics.trackers import check_trackers
from emu3_megatron.runs.signals import StopRequest, leaving_time, say_on_screen
from emu3_megatron.runs.starting import watched_start
from emu3_megatron.runs.watchdog import Watchdog


@contextmanager
def supervised(config: RunConfig, mesh: Mesh, peak_flops: float | None) -> Iterator[Run]:
    """Hold the run's folder and watch over this rank.

    Args:
        peak_flops: of this rank's device in FLOP/s, where it is known.

    Raises:
        InputError: on all ranks, another job has the folder, or a tracker lacks its package or key.
    """
    folder = config.dir
    locks: list[RunLock] = []  # the first rank's

    def take_the_lock() -> str:
        check_trackers(config)
        locks.append(RunLock(folder))
        return locks[0].job

    with watched_start(config.hang_seconds):
        job = on_first_rank(take_the_lock)
    beat = locks[0].beat if locks else lambda: None
    clock = StreamClock() if mesh.device.type == "cuda" else HostClock()
    events = Events(folder, mesh.is_first)
    watchdog = Watchdog(folder, mesh, config.hang_seconds, beat)

    def leave_at_once() -> None:
        events.add("left", watchdog.step, why="interrupted, not saved")
        for lock in locks:
            lock.release()

    say = say_on_screen if mesh.is_first else lambda words: None
    stop = StopRequest(leaving_time(config.leave_minutes), say, leave_at_once)
    try:
        with watchdog, stop, Communication(clock) as communication:
            peak = peak_flops * mesh.size if peak_flops else None
            yield Run(
                folder=folder,
                steps=config.steps,
                mesh=mesh,
                events=events,
                watchdog=watchdog,
                stop=stop,
                communication=communication,
                still_ours=lambda: all(lock.is_ours() for lock in locks),
                log=Log(communication, peak),
            )
    except (InputError, RunEnded):
        raise
    except Exception as error:  # who looks at the run's status will not have seen its traceback
        events.add_failure(watchdog.step, mesh.rank, job, error)
        raise
    finally:
        for lock in locks:
            lock.release()
        for left in (folder / FOLDER, folder):  # by a run that was refused
            with suppress(OSError):
                left.rmdir()
