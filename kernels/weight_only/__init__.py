"""Linear layers whose weights are stored in 8 bits and multiplied in the inputs' type."""

import torch
from emu3_kernels.weight_only.backends import BACKENDS, Backend, choose
from emu3_kernels.weight_only.quantized import QuantizedWeight, quantize

__all__ = ["BACKENDS", "Backend", "QuantizedWeight", "linear", "quantize"]


def linear(x: torch.Tensor, weight: QuantizedWeight, backend: Backend = "auto") -> torch.Tensor:
    """`x @ weight.T` for inference: no gradients.

    Args:
        x: [..., i], floating point.
        weight: of `quantize`.
        backend: "reference" is plain torch in fp32 or wider; "torch" is torch's 8-bit operator for
            few rows of bf16 on a CPU, and else turns blocks of the weight into x's type and
            multiplies by those; "triton" reads the 8-bit weight in the product itself, for at most
            64 rows on a GPU. "auto" takes what fits.

    Returns:
        [..., o] in x's type.

    Raises:
        ValueError: sizes do not fit, or the backend cannot take them.
    """
    outputs, inputs = weight.values_oi.shape
    if x.shape[-1] != inputs or not x.is_floating_point():
        raise ValueError(
            f"x is {x.dtype} {[*x.shape]}; the weight takes floating point numbers [..., {inputs}]"
        )
    x_ni = x.reshape(-1, inputs)
    y_no = choose(backend, x_ni, weight)(x_ni, weight)
    return y_no.view(*x.shape[:-1], outputs)
