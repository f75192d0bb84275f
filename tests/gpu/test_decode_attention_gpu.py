"""Attention of a decode step on a GPU, at Emu3's heads, and in a CUDA graph."""

import pytest
import torch
from support.decode_steps import DecodeCase, error

pytestmark = pytest.mark.gpu

LAST = {
    "guidance": [140, 133],
    "the first keys alone": [4, 4],
    "sixteen rows": [5, 299, 64, 63, 128, 5, 17, 200] * 2,
}


def draw(last, width=1, dtype=torch.bfloat16, dim=128):
    case = DecodeCase.draw(last, width, group=4, dim=dim, kv_heads=8)
    return case.to(dtype, "cuda")


@pytest.mark.parametrize("width", [1, 2, 5, 16])
@pytest.mark.parametrize("last", LAST)
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_rounding_costs_no_more_than_plain_torchs(backend, last, width):
    case = draw([max(position, width - 1) for position in LAST[last]], width)

    out = case.attend(backend)

    assert error(out, case.exact()) <= 1.2 * error(case.plain(), case.exact())


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 1e-3), (torch.float32, 1e-5)])
def test_other_types_and_head_dimensions(dtype, most, dim):
    case = draw(LAST["guidance"], dtype=dtype, dim=dim)

    assert error(case.attend("triton"), case.exact()) <= most


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_graph_follows_the_positions(backend):
    case = draw(LAST["guidance"], width=2)
    case.attend(backend)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = case.attend(backend)

    for step in (1, 90):
        case.positions.add_(step)
        graph.replay()
        torch.testing.assert_close(out, case.attend(backend))
        assert error(out, case.exact()) <= 1e-2


def test_triton_repeats_bit_by_bit():
    case = draw(LAST["sixteen rows"])

    assert torch.equal(case.attend("triton"), case.attend("triton"))
