"""A thread beside every rank: it writes down where the rank is, and ends a run that hangs.

Heartbeats are files, `RUN/ranks/00003.json`: they outlive the rank, need no collective, and are
what `emu3 status` reads. A rank without progress for the limit writes the stacks of its threads,
finds out from all heartbeats which rank is late, says so and leaves; its launcher ends the rest.
"""

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType

from emu3_megatron.errors import HUNG, InputError
from emu3_megatron.parallel import Mesh
from emu3_megatron.training.heartbeats import FOLDER, diagnosis, read_heartbeats

_BEATS_A_LIMIT = 6
# What stands between a collective and the line that called it.
_BETWEEN = ("contextlib.py", "communication.py")


class Watchdog:
    """Watches the main thread of this rank. A context manager.

    Args:
        folder: of the run.
        limit: seconds that one phase of a step may take.
        on_beat: called at every heartbeat, from the thread.
    """

    def __init__(
        self, folder: Path, mesh: Mesh, limit: float, on_beat: Callable[[], None] = lambda: None
    ):
        self.folder = folder / FOLDER
        self._path = self.folder / f"{mesh.rank:05d}.json"
        self.limit = limit
        self.on_beat = on_beat
        self.interval = min(limit / _BEATS_A_LIMIT, 10.0)
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._ended = threading.Event()
        self._place = {
            "rank": mesh.rank,
            "ranks": mesh.size,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "tensor": mesh.tensor_rank,
            "context": mesh.context_rank,
            "data": mesh.data_rank,
            "interval": self.interval,
        }
        self.at(0, "starting")

    def __enter__(self) -> "Watchdog":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._beat("running")
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._beat("left")
        if isinstance(error, InputError) and self._progress[0] == 0:
            self._path.unlink()  # a run that was refused leaves nothing

    def at(self, step: int, phase: str) -> None:
        """Note progress: a phase of a step begins."""
        self._progress = (step, phase, time.monotonic())

    def _watch(self) -> None:
        while not self._ended.wait(self.interval):
            self._beat("running")
            with contextlib.suppress(OSError):
                self.on_beat()
            if time.monotonic() - self._progress[2] > self.limit:
                self._end_the_hang()

    def _beat(self, state: str) -> None:
        step, phase, since = self._progress
        beat = {
            **self._place,
            "state": state,
            "step": step,
            "phase": phase,
            "for_seconds": round(time.monotonic() - since, 1),
            **where_is(sys._current_frames().get(self._main)),
        }
        beside = self._path.with_suffix(".tmp")
        try:
            beside.write_text(json.dumps(beat))
            os.replace(beside, self._path)
        except OSError as error:
            print(f"{self._path}: {error.strerror}", file=sys.stderr)

    def _end_the_hang(self) -> None:
        stacks = self._path.with_suffix(".stacks.txt")
        with stacks.open("w") as file:
            faulthandler.dump_traceback(file=file, all_threads=True)
        self._beat("hanging")
        time.sleep(2 * self.interval)  # until the others have written theirs
        words = diagnosis(read_heartbeats(self.folder.parent))
        message = f"no progress for {self.limit:.0f} seconds: {words}; stacks: {stacks}"
        print(f"emu3: rank {self._place['rank']}: {message}", file=sys.stderr, flush=True)
        os._exit(HUNG)


def where_is(frame: FrameType | None) -> dict[str, str | None]:
    """The collective that a thread is in, if any, and the line outside torch that it came from."""
    collective, line = None, None
    while frame is not None and line is None:
        code = frame.f_code
        if "/torch/distributed/" in code.co_filename:
            public = not code.co_name.startswith(("_", "wrapper", "inner"))
            if public or collective is None:  # a manager of several collectives is private
                collective = code.co_name
        elif "/torch/" not in code.co_filename and Path(code.co_filename).name not in _BETWEEN:
            line = f"{'/'.join(Path(code.co_filename).parts[-2:])}:{frame.f_lineno} {code.co_name}"
        frame = frame.f_back
    return {"collective": collective, "line": line}
