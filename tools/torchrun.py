"""torchrun that passes signals on to the ranks and ends with their exit status.

torchrun answers a signal by giving its processes 30 seconds, and every exit status by 1. Here
SIGTERM, SIGUSR1 and Ctrl-C go on to the ranks, which save and leave; the status is that of the
first rank that left. Options are torchrun's.
"""

import os
import signal
import sys
import threading

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def tell_the_ranks(number: int, frame: object) -> None:
    for rank in psutil.Process().children():
        rank.send_signal(number)


def run(arguments: list[str], status: list[int]) -> None:
    try:
        main(arguments)
        status.append(0)
    except ChildFailedError as failed:
        _, first = failed.get_first_failure()
        status.append(max(1, first.exitcode))  # below 0: ended by a signal
    except SystemExit as ended:
        status.append(ended.code if isinstance(ended.code, int) else 1)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, tell_the_ranks)
    # Without this a node that joins later never hears where the ranks meet: torch 2.13 tells it in
    # the first round alone.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    status: list[int] = []
    # torchrun takes signals for itself only in a main thread.
    launcher = threading.Thread(target=run, args=(sys.argv[1:], status))
    launcher.start()
    launcher.join()
    sys.exit(status[0] if status else 1)
