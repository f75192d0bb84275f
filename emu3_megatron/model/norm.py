"""RMSNorm as Emu3 computes it; Megatron's torch norm refuses sequence parallelism."""

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig


class RMSNorm(torch.nn.Module):
    """x / rms(x) in fp32, cast back to x's dtype, then times the weight (modeling_emu3.py)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float, **ignored: Any):
        super().__init__()
        self.eps = eps
        # Made like Megatron's own weights: on the GPU, or on the ambient device (meta, say).
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = torch.nn.Parameter(
            torch.ones(hidden_size, dtype=config.params_dtype, device=device)
        )
        # Its gradient is a sum over the tokens that tensor parallel ranks divide among them.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(hidden.dtype)
