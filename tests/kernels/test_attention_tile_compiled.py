"""Triton's kernels compiled for Hopper, ahead of time: this needs no GPU."""

import json
import os
import re
import subprocess
import sys

import pytest

COMPILE = """
import json, pathlib, subprocess, sys, tempfile
import triton
from emu3_kernels.attention_tile import triton_backward, triton_forward, triton_tile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

name, dropout = sys.argv[1], sys.argv[2] == "True"
kernel, heads = {
    "forward": (triton_forward.forward_kernel, {"HEADS": 32, "RUNNING": True}),
    "dq": (triton_backward.dq_kernel, {"HEADS": 32}),
    "dkdv": (triton_backward.dkdv_kernel, {"KV_HEADS": 8}),
}[name]
launch = triton_tile.HALF[name]
constants = dict(
    GROUP=4, DIM=128, BLOCK_M=launch.block_m, BLOCK_N=launch.block_n, DROPOUT=dropout,
    PRECISION="tf32x3", **heads,
)
types = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "dout_ptr"), "*bf16")
types |= dict.fromkeys(("out_ptr", "lse_ptr", "delta_ptr", "dq_ptr", "dk_ptr", "dv_ptr"), "*fp32")
types |= dict.fromkeys(("query_index_ptr", "key_index_ptr"), "*i64")
types |= dict.fromkeys(("scale", "scale_log2", "dropout_factor"), "fp32")
types |= dict.fromkeys(constants, "constexpr")
signature = {
    arg: types.get(arg, "*i32" if arg.endswith("_ptr") else "i32") for arg in kernel.arg_names
}
aligned = {
    (place,): [["tt.divisibility", 16]]
    for place, arg in enumerate(kernel.arg_names)
    if arg.endswith(("_ptr", "_t", "_h"))
}
compiled = triton.compile(
    ASTSource(kernel, signature, constexprs=constants, attrs=aligned),
    target=GPUTarget("cuda", 90, 32),
    options={"num_warps": launch.num_warps, "num_stages": launch.num_stages},
)
tool = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
    file.write(compiled.asm["cubin"])
    file.flush()
    sass = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True)
print(json.dumps({"shared": compiled.metadata.shared, "sass": sass.stdout}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("kernel", ["forward", "dq", "dkdv"])
def test_hoppers_tensor_cores_and_no_spills_in_loops(kernel: str, dropout: bool) -> None:
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, kernel, str(dropout)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    compiled = json.loads(done.stdout)

    blocks = re.split(r"^\.L_\w+:|BRA ", compiled["sass"], flags=re.MULTILINE)
    products = [block for block in blocks if "HGMMA" in block]
    assert products, "no warp group matrix products"
    assert not [block for block in products if re.search(r"\b(STL|LDL)\b", block)]
    assert compiled["shared"] <= 227 * 1024
