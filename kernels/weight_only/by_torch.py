"""8-bit linear layers by torch: its own operator, or products with blocks of the weight."""

import torch
from emu3_kernels.weight_only.quantized import QuantizedWeight

# torch's operator takes a row at a time; in fp32 it is slower than blocks from the first row on.
MOST_ROWS = 8
# Of the weight in x's type: on a CPU a block stays in its cache, on a GPU it fills the device.
BLOCK_BYTES = {"cpu": 1 << 20, "cuda": 1 << 26}


def multiply(x_ni: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """See `linear`."""
    if _torch_has_an_operator(x_ni, weight):
        scales_o = weight.scales_o.to(x_ni.dtype)
        return torch.ops.aten._weight_int8pack_mm(x_ni, weight.values_oi, scales_o)
    return _by_blocks(x_ni, weight)


def _torch_has_an_operator(x_ni: torch.Tensor, weight: QuantizedWeight) -> bool:
    bf16_by_int8 = (x_ni.dtype, weight.values_oi.dtype) == (torch.bfloat16, torch.int8)
    return bf16_by_int8 and x_ni.device.type == "cpu" and len(x_ni) <= MOST_ROWS


def _by_blocks(x_ni: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """A block of output rows at a time: 8-bit values are exact in 16 bits, scales come after."""
    outputs, inputs = weight.values_oi.shape
    block = max(1, BLOCK_BYTES.get(x_ni.device.type, 1 << 26) // (inputs * x_ni.element_size()))
    y_no = x_ni.new_empty(len(x_ni), outputs)
    for start in range(0, outputs, block):
        rows = slice(start, start + block)
        torch.mm(x_ni, weight.values_oi[rows].to(x_ni.dtype).T, out=y_no[:, rows])
    return y_no.mul_(weight.scales_o)
