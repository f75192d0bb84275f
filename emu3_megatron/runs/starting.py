"""Ends a rank that waits at the start for one that never comes."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from emu3_megatron.errors import HUNG

_LOOK = 1.0


@contextmanager
def watched_start(limit: float) -> Iterator[None]:
    """End the process if this takes longer than `limit` seconds, `run.hang_seconds`.

    There are no heartbeats yet, by which a watchdog would find the late rank. Time in which the
    process was suspended does not count.
    """
    ended = threading.Event()
    threading.Thread(target=_watch, args=(limit, ended), name="start", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _watch(limit: float, ended: threading.Event) -> None:
    left = limit
    while left > 0:
        began = time.monotonic()
        if ended.wait(min(_LOOK, left)):
            return
        left -= min(time.monotonic() - began, 2 * _LOOK)
    print(
        f"emu3: rank {os.environ.get('RANK', '0')}: waited {limit:.0f} seconds, run.hang_seconds, "
        "at the start for the other ranks: one of them has died, or was never started",
        file=sys.stderr,
        flush=True,
    )
    os._exit(HUNG)
