"""The Triton kernels of decode attention: any number of parts, and compiled for Hopper."""

from support import triton_interpreter

# isort: split
import pytest
import torch
from support.decode_steps import DecodeCase, error
from support.hopper import in_a_process

pytest.importorskip("triton")
from emu3_kernels.decode_attention import triton_split

DEVICE = triton_interpreter.DEVICE


@pytest.mark.parametrize("most", [1, 2, 64])
def test_keys_in_any_number_of_parts(most, monkeypatch):
    """A row of 300 keys fills five parts, a row of 3 keys one; queries are neighbours."""
    monkeypatch.setattr(triton_split, "MOST_PARTS", most)
    monkeypatch.setattr(triton_split, "_processors", lambda device: 64)
    case = DecodeCase.draw([299, 2, 64], width=2).to(torch.float32, DEVICE)

    assert error(case.attend("triton"), case.exact()) < 2e-6


@pytest.mark.parametrize(("dtype", "times"), [(torch.float32, 2), (torch.float16, 1)])
def test_rounding_costs_no_more_than_plain_torchs(dtype, times):
    case = DecodeCase.draw([40, 299], width=2, group=4).to(dtype, DEVICE)

    out = case.attend("triton")

    assert out.dtype == dtype
    assert error(out, case.exact()) <= times * error(case.plain(), case.exact())


def test_parts_fill_the_multiprocessors_once():
    parts = lambda rows, keys: triton_split.parts_of(rows * 8, keys, 64, 132)

    assert parts(2, 9000) == 16
    assert parts(2, 200) == 4  # no part is smaller than a block
    assert parts(16, 9000) == 2
    assert parts(64, 9000) == 1


COMPILE = """
import json
import torch
from emu3_kernels.decode_attention import triton_kernels, triton_split
from support.hopper import compiled

launch = triton_split.launch_of(torch.bfloat16, 128)
warps = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
types = dict.fromkeys(("query_ptr", "key_ptr", "value_ptr"), "*bf16")
types |= dict.fromkeys(("out_ptr", "lse_ptr", "parts_ptr"), "*fp32")
types |= {"positions_ptr": "*i64", "scale_log2": "fp32"}
sizes = dict(WIDTH=2, GROUP=4, KV_HEADS=8, DIM=128, PARTS=16, BLOCK_N=launch.block_n)
aligned = ("query_", "key_", "value_", "out_", "lse_", "parts_", "positions_ptr")
parts = sizes | {"BLOCK_M": 16, "PRECISION": "tf32x3"}
print(json.dumps([
    compiled(triton_kernels.parts_kernel, types, parts, aligned, **warps),
    compiled(triton_kernels.merge_kernel, types, sizes | {"PARTS_BLOCK": 16}, aligned),
]))
"""


@pytest.mark.slow
def test_kernels_compile_for_hopper_with_wide_loads_and_without_spills(tmp_path):
    parts, merge = in_a_process(COMPILE, tmp_path)

    assert parts["stack"] == merge["stack"] == 0
    # As many programs as `PROGRAMS` says share a multiprocessor's 227 KiB and 64 Ki registers.
    assert triton_split.PROGRAMS * parts["shared"] <= 227 * 1024
    assert triton_split.PROGRAMS * parts["registers"] * 4 * 32 <= 64 * 1024
    assert "HMMA" in parts["code"], "no tensor cores"
    assert "LDGSTS.E.BYPASS.128" in parts["code"], "keys are not loaded ahead, 16 bytes a thread"
