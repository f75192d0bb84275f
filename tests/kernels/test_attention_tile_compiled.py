"""Triton's kernels compiled for Hopper, ahead of time: this needs no GPU."""

import json
import os
import subprocess
import sys

import pytest

COUNT = """
import json, sys
import compiled
kernels = [kernel for kernel in compiled.attention_kernels() if sys.argv[1] in kernel.case]
print(json.dumps([compiled.compiled(kernel) for kernel in kernels]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["forward", "dq", "dkdv"])
def test_hoppers_tensor_cores_no_spills_and_a_cheap_dropout(kernel: str) -> None:
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COUNT, f"attention/{kernel}"],
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    plain, dropout = json.loads(done.stdout)

    for row in (plain, dropout):
        assert row["products"], "no warp group matrix products"
        assert row["spills_in_loops"] == 0
        assert row["shared_bytes"] <= 227 * 1024
        assert row["async_copies_128"]
    assert dropout["loop_instructions"] <= 1.35 * plain["loop_instructions"]
