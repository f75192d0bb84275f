"""Linear layers with 8-bit weights: what rounding the weight costs, and each backend in fp64."""

import pytest
import torch
from emu3_kernels.weight_only import QuantizedWeight, linear, quantize
from support.triton_interpreter import DEVICE

# The interpreter knows no fp64.
DTYPES = {"reference": torch.float64, "torch": torch.float64, "triton": torch.float32}
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6}
every_backend = pytest.mark.parametrize("backend", DTYPES)
every_kind = pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def error(found, exact):
    return ((found.double().cpu() - exact).norm() / exact.norm()).item()


def exact(x, weight):
    """With the weight that the 8-bit values stand for."""
    return x.double().cpu() @ weight.dequantized(torch.float64).cpu().T


def test_a_rows_largest_number_becomes_the_largest_integer():
    weight = quantize(torch.tensor([[0.5, -1.0, 0.25], [0.0, 4.0, -3.0]]))

    assert weight.values_oi.tolist() == [[64, -127, 32], [0, 127, -95]]
    assert weight.scales_o.tolist() == pytest.approx([1 / 127, 4 / 127], rel=2**-8)


@pytest.mark.parametrize(("kind", "most"), [(torch.int8, 0.009), (torch.float8_e4m3fn, 0.027)])
def test_rounding_to_8_bits_costs_little(kind, most):
    exact = draw(64, 512)

    weight = quantize(exact.bfloat16(), kind)

    assert error(weight.dequantized(torch.float32), exact.bfloat16().double()) < most
    assert weight.nbytes == 64 * 512 + 64 * 4
    assert torch.equal(weight.scales_o, weight.scales_o.bfloat16().float())


def test_a_row_of_zeros_stays_one():
    weight = quantize(torch.zeros(2, 3))

    assert torch.equal(weight.dequantized(torch.float32), torch.zeros(2, 3))


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 200, 90), (17, 33, 130)])
@every_kind
@every_backend
def test_backends_multiply_by_the_8_bit_weight(backend, kind, shape):
    rows, inputs, outputs = shape
    device = DEVICE if backend == "triton" else "cpu"
    weight = quantize(draw(outputs, inputs).to(device), kind)
    x = draw(rows, inputs).to(device, DTYPES[backend])

    y = linear(x, weight, backend)

    assert y.dtype == x.dtype
    assert error(y, exact(x, weight)) < TOLERANCE[x.dtype]


@pytest.mark.parametrize("rows", [1, 8, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@every_kind
def test_rounding_costs_no_more_than_a_product_of_that_type(dtype, kind, rows):
    weight, x = quantize(draw(300, 1024), kind), draw(rows, 1024).to(dtype)

    y = linear(x, weight)

    plain = x @ weight.dequantized(dtype).T
    # Scales come after the product: bf16 rounds twice.
    assert error(y, exact(x, weight)) <= 1.5 * error(plain, exact(x, weight))


def test_a_cpu_turns_blocks_of_the_weight_into_the_type(monkeypatch):
    weight, x = quantize(draw(700, 1024)), draw(2, 1024).float()  # blocks of 256 rows
    sizes = []
    product = torch.mm
    count = lambda x, block, out: sizes.append(block.shape[1]) or product(x, block, out=out)
    monkeypatch.setattr(torch, "mm", count)

    linear(x, weight)

    assert sizes == [256, 256, 188]


def test_leading_dimensions_are_kept():
    weight, x = quantize(draw(5, 8)), draw(2, 3, 8)

    assert linear(x, weight).shape == (2, 3, 5)
    assert linear(x[:0], weight).shape == (0, 3, 5)
    assert error(linear(x, weight), exact(x, weight)) < 1e-14


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda w: quantize(torch.zeros(2, 3), torch.int4), "choose torch.int8"),
        (lambda w: quantize(torch.full((2, 3), torch.inf)), "not finite"),
        (lambda w: linear(torch.zeros(2, 4), w), r"takes floating point numbers \[..., 3\]"),
        (lambda w: linear(torch.zeros(2, 3), w, "cutlass"), "no backend 'cutlass'"),
        (lambda w: linear(torch.zeros(65, 3).to(DEVICE), w, "triton"), "65 rows; it takes 64"),
    ],
)
def test_what_does_not_fit_is_refused(call, reason):
    weight = QuantizedWeight(torch.ones(2, 3, dtype=torch.int8), torch.ones(2))

    with pytest.raises(ValueError, match=reason):
        call(weight)
