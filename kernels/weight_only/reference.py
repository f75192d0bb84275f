"""8-bit linear layers in plain torch: any device, any floating type, computed in fp32 or wider."""

import torch
from emu3_kernels.weight_only.quantized import QuantizedWeight


def multiply(x_ni: torch.Tensor, weight: QuantizedWeight) -> torch.Tensor:
    """See `linear`."""
    wide = torch.promote_types(x_ni.dtype, torch.float32)
    return (x_ni.to(wide) @ weight.dequantized(wide).T).to(x_ni.dtype)
