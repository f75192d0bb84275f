"""torch's flash attention for GPUs, many segments of the mask in one call."""

from functools import partial

import torch
from emu3_kernels.attention_tile.implementation import unsupported_by_gpu_kernels
from emu3_kernels.attention_tile.packed import Call, calls, nothing_is_negative
from emu3_kernels.attention_tile.parts import by_parts

aten = torch.ops.aten


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Call, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse, *_ = aten._flash_attention_forward(
        *(q, k, v, *call.bounds), 0.0, call.causal, False, scale=scale
    )
    return out, nothing_is_negative(lse)


def _differentiate(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    call: Call,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    no_rng = torch.empty(2, dtype=torch.uint64, device=q.device)
    return aten._flash_attention_backward(
        *(dout, q, k, v, out, lse, *call.bounds),
        *(0.0, call.causal, no_rng, torch.empty(0, device=q.device)),
        scale=scale,
    )


IMPLEMENTATION = by_parts(
    partial(unsupported_by_gpu_kernels, largest_dim=256), calls, _attend, _differentiate
)
