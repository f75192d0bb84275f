import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# One thread a process, in those that tests start too: several processes share few cores, and
# results are compared bit for bit.
os.environ["OMP_NUM_THREADS"] = "1"

import psutil
import pytest
import support.triton_interpreter  # noqa: F401  (before Megatron imports triton)

from emu3_megatron import parallel
from emu3_megatron.parallel import Mesh

# For a worker and the processes that its tests start: two took 6.7 GiB at most.
GIB_A_WORKER = 4


@pytest.hookimpl(optionalhook=True)  # unknown where pytest-xdist is not installed
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many workers `-n auto` starts: one a core, as far as memory allows."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(cores, psutil.virtual_memory().available // (GIB_A_WORKER * 2**30)))


@pytest.fixture(scope="session")
def mesh() -> Iterator[Mesh]:
    """Megatron's groups over this one process."""
    mesh = parallel.start()
    mesh.seed(0, 0)
    yield mesh
    parallel.stop()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `emu3 demo --stages all` leaves, made once a session.

    Or the folder that EMU3_DEMO names, which may have the first stages alone.
    """
    if given := os.environ.get("EMU3_DEMO"):
        return Path(given).resolve()
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a folder of its own inside
        shared = shared.parent
    with (shared / "demo.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "demo" / "summary.json").is_file():
            command = [sys.executable, "-m", "emu3_megatron", "demo", "--stages", "all"]
            subprocess.run(command, cwd=shared, check=True)
    return shared / "demo"
