"""The Triton kernels of 8-bit linear layers: any number of parts, and compiled for Hopper."""

from support import triton_interpreter

# isort: split
import pytest
import torch
from emu3_kernels.weight_only import linear, quantize
from support.hopper import in_a_process

pytest.importorskip("triton")
from emu3_kernels.weight_only import triton_linear

DEVICE = triton_interpreter.DEVICE


@pytest.mark.parametrize("processors", [1, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_inputs_in_any_number_of_parts(dtype, processors, monkeypatch):
    monkeypatch.setattr(triton_linear, "_processors", lambda device: processors)
    torch.manual_seed(0)
    weight, x = quantize(torch.randn(100, 700).to(DEVICE)), torch.randn(5, 700).to(DEVICE, dtype)

    y = linear(x, weight, "triton")

    exact = x.double() @ weight.dequantized(torch.float64).T
    plain = x @ weight.dequantized(dtype).T
    assert (y - exact).norm() <= 2 * (plain - exact).norm()


def test_a_row_depends_on_no_other():
    torch.manual_seed(0)
    weight, x = quantize(torch.randn(64, 256).to(DEVICE)), torch.randn(20, 256).to(DEVICE)

    together = linear(x, weight, "triton")

    assert torch.equal(together[3:5], linear(x[3:5], weight, "triton"))


def test_parts_fill_the_multiprocessors_once():
    parts = lambda outputs, inputs: triton_linear.parts_of(outputs // 64, inputs, 128, 132)

    assert parts(32768, 4096) == (1, 4096)
    assert parts(6144, 4096) == (2, 2048)
    assert parts(4096, 14336) == (4, 3584)
    assert parts(64, 256) == (2, 128)  # no part is smaller than a block


COMPILE = """
import json
import torch
from emu3_kernels.weight_only import triton_kernels, triton_linear
from support.hopper import compiled

launch = triton_linear.HALF
warps = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
types = {"x_ptr": "*bf16", "scales_ptr": "*fp32", "out_ptr": "*fp32", "parts_ptr": "*fp32"}
aligned = ("x_", "values_", "scales_", "out", "parts_ptr", "inputs", "part_size", "count")
sizes = dict(BLOCK_O=launch.block_o, BLOCK_I=launch.block_i, PRECISION="tf32x3", PARTS=4)
found = {
    f"{kind} {rows}": compiled(
        triton_kernels.parts_kernel,
        types | {"values_ptr": kind},
        sizes | {"BLOCK_M": rows},
        aligned,
        **warps,
    )
    for kind, rows in (("*i8", 16), ("*i8", 64), ("*fp8e4nv", 16))
}
merge = {"PARTS": 4, "BLOCK": triton_linear.MERGE_BLOCK}
found["merge"] = compiled(
    triton_kernels.merge_kernel, types | {"out_ptr": "*bf16"}, merge, aligned
)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_kernels_compile_for_hopper_with_wide_loads_and_without_spills(tmp_path):
    found = in_a_process(COMPILE, tmp_path)

    for name, kernel in found.items():
        assert kernel["stack"] == 0, name
        if name == "merge":
            continue
        # As many programs as `PROGRAMS` says share a multiprocessor's 227 KiB and 64 Ki registers.
        assert triton_linear.PROGRAMS * kernel["shared"] <= 227 * 1024, name
        assert triton_linear.PROGRAMS * kernel["registers"] * 4 * 32 <= 64 * 1024, name
        assert "HGMMA" in kernel["code"], f"{name}: no warp group matrix products"
        assert "LDGSTS.E.64" in kernel["code"], f"{name}: weights are not loaded ahead"
        assert "I2F" not in kernel["code"], f"{name}: slow conversions"
