"""Runs tasks in this process, in processes of this machine, or on Ray Data.

A worker of the last two is a process that another one watches (`isolation`).

A task makes one file, whole or not at all, under a name that says what went in; so a task may be
run again anywhere, and what is there already is left out. That is all that going on after a kill
takes, and the reason why one run of Ray Data a step is enough.
"""

import errno
import logging
import os
import pickle
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol

from tqdm import tqdm

from emu3_megatron.config.prepare import RunConfig
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.isolation import WorkerDied, WorkerFailed, WorkerProcess, preload
from emu3_megatron.prepare.memory import return_freed_memory

Worker = Callable[[Any], None]
"""Runs one task. It is made once in each process, and keeps what it has loaded."""

MakeWorker = Callable[[], Worker]
"""Makes a worker; it is sent to the processes, so it must be picklable."""

_NUM_CPUS = 0.5  # of an actor: whole ones leave Ray Data none to read with, and it waits for ever


class Task(Protocol):
    @property
    def size(self) -> int:
        """Its share of the progress."""
        ...


@dataclass(frozen=True)
class _Failure:
    """Errors travel as values: Ray would wrap them into long tracebacks.

    Attributes:
        is_mistake: of the program; the message is a traceback.
    """

    message: str
    is_mistake: bool = False


def run_tasks(make: MakeWorker, tasks: Sequence[Task], config: RunConfig, label: str) -> None:
    """Run all tasks, in no order, with a progress bar.

    Args:
        label: of the progress bar, with the unit of sizes behind a slash: `score/photo`.

    Raises:
        InputError: the first task that failed; what others have made stays.
    """
    if not tasks:
        return
    run = {"local": _local, "processes": _processes, "ray": _ray}[config.executor]
    name, _, unit = label.partition("/")
    total = sum(task.size for task in tasks)
    with tqdm(total=total, desc=name, unit=unit, unit_scale=unit == "B", disable=None) as progress:
        for result in run(make, tasks, config):
            if isinstance(result, _Failure):
                raise (WorkerFailed if result.is_mistake else InputError)(result.message)
            progress.update(result)


def workers_of(config: RunConfig) -> int:
    """How many processes of this machine: as many as cores, and one on a GPU."""
    most = 1 if config.device == "cuda" else len(os.sched_getaffinity(0))
    return config.workers or most


class _Guarded:
    """A worker that returns its task's size, or what failed."""

    def __init__(self, make: MakeWorker):
        self._make = make
        self._worker: Worker | None = None

    def __call__(self, task: Task) -> int | _Failure:
        try:
            if self._worker is None:
                return_freed_memory()
                self._worker = self._make()
            self._worker(task)
        except InputError as error:
            return _Failure(str(error))
        except OSError as error:
            return _Failure(line_of(error))
        return task.size


def line_of(error: OSError) -> str:
    """What the system refused, and where, in one line."""
    where = f"{error.filename}: " if error.filename else ""
    line = f"{where}{error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        line += "; free some space and run the same command, it goes on where it stopped"
    return line


def _local(make: MakeWorker, tasks: Sequence[Task], config: RunConfig) -> Iterator[int | _Failure]:
    worker = _Guarded(make)
    return (worker(task) for task in tasks)


class _Watched:
    """A worker in a process of its own, which returns as `_Guarded` does."""

    def __init__(self, make: MakeWorker, config: RunConfig):
        guarded = partial(_Guarded, partial(_one_thread, make))
        self._process = WorkerProcess(guarded, config.stall_seconds)
        self.stop = self._process.stop

    def __call__(self, task: Task) -> int | _Failure:
        try:
            result: int | _Failure = self._process.run(task)
            return result
        except WorkerDied as death:
            return _Failure(
                f"{death}, at no item; run the same command, it goes on where it stopped; "
                "fewer run.workers take less memory"
            )
        except WorkerFailed as error:
            return _Failure(str(error), is_mistake=True)


def _processes(
    make: MakeWorker, tasks: Sequence[Task], config: RunConfig
) -> Iterator[int | _Failure]:
    if isinstance(make, partial):  # what the first workers need is imported once, for all
        preload(["__main__", make.func.__module__])
    workers = [_Watched(make, config) for _ in range(min(workers_of(config), len(tasks)))]
    idle: SimpleQueue[_Watched] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def run_one(task: Task) -> int | _Failure:
        worker = idle.get()
        try:
            return worker(task)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(len(workers)) as pool:
        futures = [pool.submit(run_one, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.stop()


class _Actor:
    """A worker of Ray Data; a row is a task."""

    def __init__(self, make: MakeWorker, config: RunConfig):
        self._worker = _Watched(make, config)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"result": pickle.dumps(self._worker(pickle.loads(row["task"])))}


def _ray(make: MakeWorker, tasks: Sequence[Task], config: RunConfig) -> Iterator[int | _Failure]:
    start_ray(config)
    import ray

    rows = [{"task": pickle.dumps(task)} for task in tasks]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Actor,  # type: ignore[arg-type]
        fn_constructor_args=(make, config),
        compute=ray.data.ActorPoolStrategy(size=min(_cluster_workers(config), len(tasks))),
        num_cpus=_NUM_CPUS,
        num_gpus=1 if config.device == "cuda" else None,
    )
    for row in done.iter_rows():
        yield pickle.loads(row["result"])


def start_ray(config: RunConfig) -> None:
    """Join the cluster, or start Ray inside this machine; once.

    Raises:
        InputError: Ray is not installed, does not start, or there is no cluster at that address.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters comes as an exception
    if config.address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # nobody else can reach it
    try:
        import ray
    except ImportError:
        raise InputError("Ray is missing: pip install 'emu3-megatron[prepare]'") from None
    if ray.is_initialized():
        return
    if config.address is not None:
        _check_somebody_listens(config.address)
    try:
        ray.init(
            # Without "local" Ray looks for a cluster first, and waits for one that is long dead.
            address=config.address or "local",
            include_dashboard=False if config.address is None else None,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except Exception as error:  # of many kinds, as the reason wants it
        where = (
            f"run.address={config.address}: no Ray cluster there"
            if config.address
            else ("Ray does not start; run.executor=processes does without it")
        )
        raise InputError(f"{where} ({' '.join(str(error).split())[:200]})") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _check_somebody_listens(address: str) -> None:
    """Ray itself tries for minutes before it says that nobody does."""
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host:  # auto, or a scheme of Ray's
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise InputError(
            f"run.address={address}: no Ray cluster there ({error.strerror or error}); start one "
            "with ray start --head"
        ) from None


def _cluster_workers(config: RunConfig) -> int:
    import ray

    resources = ray.cluster_resources()
    if config.device == "cuda":
        return config.workers or max(1, int(resources.get("GPU", 1)))
    return config.workers or max(1, int(resources.get("CPU", 1)))


def _one_thread(make: MakeWorker) -> Worker:
    """A worker in one thread: several run at once, and their number changes no result."""
    worker = make()  # imports what it needs
    for module, function in (("torch", "set_num_threads"), ("cv2", "setNumThreads")):
        if module in sys.modules:
            getattr(sys.modules[module], function)(1)
    return worker
