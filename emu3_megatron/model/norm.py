"""RMSNorm as Emu3 computes it; Megatron's torch norm refuses sequence parallelism."""

from typing import Any

import torch
from emu3_kernels.layer_elementwise import add_norm, fill_norm
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
        return add_norm(hidden, None, self.weight, self.eps)[1]


class AddNorm(RMSNorm):
    """The residual stream with a branch added to it, and the RMSNorm of the sum."""

    def forward(  # type: ignore[override]
        self, residual: torch.Tensor, branch: torch.Tensor | None = None, dropout: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum and its norm; the sum is the residual stream itself without a branch."""
        return add_norm(residual, branch, self.weight, self.eps, dropout)

    def fill(self, normed: torch.Tensor, total: torch.Tensor) -> None:
        """Write the norm of a sum once more, without recording."""
        fill_norm(normed, total, self.weight, self.eps)
