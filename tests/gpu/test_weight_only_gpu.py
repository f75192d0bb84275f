"""Linear layers with 8-bit weights on a GPU, at Emu3's sizes, and in a CUDA graph."""

import pytest
import torch
from emu3_kernels.weight_only import linear, quantize

pytestmark = pytest.mark.gpu

every_kind = pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])


def draw(outputs, inputs, rows, kind=torch.int8, dtype=torch.bfloat16):
    weight = quantize(torch.randn(outputs, inputs, device="cuda"), kind)
    return torch.randn(rows, inputs, device="cuda").to(dtype), weight


def error(found, x, weight):
    exact = x.double() @ weight.dequantized(torch.float64).T
    return ((found.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("rows", [1, 2, 17, 64, 300])
@pytest.mark.parametrize(("outputs", "inputs"), [(6144, 4096), (4096, 14336), (1000, 700)])
@every_kind
def test_rounding_costs_no_more_than_cublas(kind, outputs, inputs, rows):
    x, weight = draw(outputs, inputs, rows, kind)

    y = linear(x, weight)

    cublas = x @ weight.dequantized(torch.bfloat16).T
    # Scales come after the product; of many rows bf16 rounds twice.
    assert error(y, x, weight) <= 1.5 * error(cublas, x, weight)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 1e-3), (torch.float32, 1e-5)])
@every_kind
def test_other_types(kind, dtype, most):
    x, weight = draw(512, 1024, 2, kind, dtype)

    assert error(linear(x, weight, "triton"), x, weight) <= most


def test_a_graph_follows_its_input():
    x, weight = draw(4096, 4096, 2)
    linear(x, weight)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = linear(x, weight)

    x.copy_(torch.randn_like(x))
    graph.replay()

    assert torch.equal(y, linear(x, weight))


def test_a_row_depends_on_no_other():
    x, weight = draw(4096, 4096, 16)

    assert torch.equal(linear(x, weight)[3:5], linear(x[3:5], weight))
