"""The Triton kernel of the search: in the interpreter, and compiled for Hopper."""

from support import triton_interpreter

# isort: split
import pytest
import torch
from emu3_kernels.nearest_code import nearest_code
from support.hopper import in_a_process

pytest.importorskip("triton")

DEVICE = triton_interpreter.DEVICE


def draw(rows, codes, channels=4):
    generator = torch.Generator().manual_seed(0)
    sample = lambda count: torch.randn(count, channels, generator=generator).to(DEVICE)
    return sample(rows), sample(codes)


@pytest.mark.parametrize(("rows", "codes", "channels"), [(1, 1, 4), (37, 700, 4), (20, 128, 3)])
def test_as_the_differences_in_fp64_say(rows, codes, channels):
    rows_nc, book_kc = draw(rows, codes, channels)

    expected = nearest_code(rows_nc, book_kc, "reference")

    assert torch.equal(nearest_code(rows_nc, book_kc, "triton"), expected)


def test_of_equal_codes_the_lowest():
    rows_nc, book_kc = draw(40, 200)
    twice_kc = torch.cat((book_kc, book_kc, book_kc[:7]))

    codes = nearest_code(rows_nc, twice_kc, "triton")

    assert torch.equal(codes, nearest_code(rows_nc, book_kc, "reference"))


def test_a_row_that_is_not_a_number_gets_a_code():
    rows_nc, book_kc = draw(3, 200)
    rows_nc[1] = torch.nan

    assert nearest_code(rows_nc, book_kc, "triton")[1] == 0


@pytest.mark.parametrize(("dtype", "channels"), [(torch.float64, 4), (torch.float32, 17)])
def test_what_it_cannot_take(dtype, channels):
    rows_nc, book_kc = (tensor.to(dtype) for tensor in draw(3, 5, channels))

    with pytest.raises(ValueError, match="backend triton: "):
        nearest_code(rows_nc, book_kc, "triton")


COMPILE = """
import json
from emu3_kernels.nearest_code import triton_kernels, triton_search
from support.hopper import compiled

types = {"rows_ptr": "*fp32", "book_ptr": "*fp32", "out_ptr": "*i64"}
sizes = dict(CHANNELS=4, BLOCK_M=triton_search.BLOCK_M, BLOCK_K=triton_search.BLOCK_K)
aligned = ("rows_ptr", "book_ptr", "out_ptr", "codes")
print(json.dumps(compiled(
    triton_kernels.search_kernel, types, sizes, aligned, num_warps=triton_search.NUM_WARPS
)))
"""


@pytest.mark.slow
def test_it_compiles_for_hopper_without_spills_or_tensor_cores(tmp_path):
    kernel = in_a_process(COMPILE, tmp_path)

    assert kernel["stack"] == 0
    assert kernel["registers"] <= 168  # three programs share a multiprocessor's registers
    assert "MMA" not in kernel["code"], "tensor cores would round to tf32"
    assert "FFMA" in kernel["code"]
