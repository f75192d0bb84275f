"""The flash-attn package (FlashAttention-2, 2.7 or later), where it is installed."""

from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from emu3_kernels.attention_tile.implementation import unsupported_by_gpu_kernels
from emu3_kernels.attention_tile.packed import Call, calls, nothing_is_negative
from emu3_kernels.attention_tile.parts import by_parts
from emu3_kernels.attention_tile.tile import Tile


def _unsupported_reason(tile: Tile) -> str | None:
    if reason := unsupported_by_gpu_kernels(tile, largest_dim=256):
        return reason
    try:
        _package()
    except ImportError as error:
        return f"the package does not import ({error}); pip install flash-attn"
    return None


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Call, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse, *_ = _package()._flash_attn_varlen_forward(
        *(q, k, v, *call.bounds), dropout_p=0.0, softmax_scale=scale, causal=call.causal
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
    dq, dk, dv = (torch.empty_like(t) for t in (q, k, v))
    _package()._flash_attn_varlen_backward(
        *(dout, q, k, v, out, lse, dq, dk, dv, *call.bounds),
        dropout_p=0.0,
        softmax_scale=scale,
        causal=call.causal,
        window_size_left=-1,
        window_size_right=-1,
        softcap=0.0,
        alibi_slopes=None,
        deterministic=True,
    )
    return dq, dk, dv


@cache
def _package() -> ModuleType:
    return import_module("flash_attn.flash_attn_interface")


IMPLEMENTATION = by_parts(_unsupported_reason, calls, _attend, _differentiate)
