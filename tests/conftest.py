import os
from collections.abc import Iterator

# One thread a process, in those that tests start too: several processes share few cores, and
# results are compared bit for bit.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import support.triton_interpreter  # noqa: F401  (before Megatron imports triton)

from emu3_megatron import parallel
from emu3_megatron.parallel import Mesh


@pytest.fixture(scope="session")
def mesh() -> Iterator[Mesh]:
    """Megatron's groups over this one process."""
    mesh = parallel.start()
    mesh.seed(0, 0)
    yield mesh
    parallel.stop()
