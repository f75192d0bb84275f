"""Run a function in several gloo processes, as torchrun would.

Processes are forked from a server that has imported Megatron once, so a run of eight costs little
more than its work.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from typing import Any

from support.ports import free_port

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["emu3_megatron.training.stage"])


def run_processes(function: Callable[..., Any], count: int, *arguments: Any) -> list[Any]:
    """Call `function(*arguments)` in `count` processes; return what each rank returned.

    Fails with the first rank's traceback if one fails, and with a timeout after three minutes.
    """
    port = free_port()
    queue = _context.Queue()
    processes = [
        _context.Process(target=_enter, args=(rank, count, port, queue, function, arguments))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    try:
        results: dict[int, Any] = {}
        for _ in processes:
            rank, value, error = queue.get(timeout=180)
            assert error is None, f"rank {rank} failed:\n{error}"
            results[rank] = value
        return [results[rank] for rank in range(count)]
    finally:
        for process in processes:
            process.join(timeout=5)
            process.kill()


def _enter(
    rank: int, count: int, port: int, queue: Any, function: Callable[..., Any], arguments: tuple
) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    try:
        value = function(*arguments)
    except BaseException:
        queue.put((rank, None, traceback.format_exc()))
    else:
        queue.put((rank, value, None))
