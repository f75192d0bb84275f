"""A layer's elementwise work in plain torch, with torch's own gradients."""

import torch
import torch.nn.functional as F


def add_norm(
    residual: torch.Tensor,
    branch: torch.Tensor | None,
    weight_h: torch.Tensor,
    eps: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `emu3_kernels.layer_elementwise.add_norm`."""
    total = residual if branch is None else dropout_add(residual, branch, dropout)
    wide = total.to(torch.promote_types(total.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return total, weight_h * wide.to(total.dtype)


def dropout_add(residual: torch.Tensor, branch: torch.Tensor, dropout: float) -> torch.Tensor:
    """See `emu3_kernels.layer_elementwise.dropout_add`."""
    return residual + (F.dropout(branch, dropout) if dropout else branch)


def rotate_qkv(
    mixed_sbc: torch.Tensor, rotary_2sb1d: torch.Tensor, groups: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `emu3_kernels.layer_elementwise.rotate_qkv`."""
    s, b, _ = mixed_sbc.shape
    dim = rotary_2sb1d.shape[-1]
    mixed_sbghd = mixed_sbc.view(s, b, groups, -1, dim)
    queries = mixed_sbghd.shape[3] - 2
    query, key, value = mixed_sbghd.split([queries, 1, 1], dim=3)
    query, key, value = (part.flatten(2, 3) for part in (query, key, value))
    return _rotated(query, rotary_2sb1d), _rotated(key, rotary_2sb1d), value


def _rotated(heads_sbhd: torch.Tensor, rotary_2sb1d: torch.Tensor) -> torch.Tensor:
    cosines, sines = rotary_2sb1d
    first, second = heads_sbhd.chunk(2, dim=-1)
    return heads_sbhd * cosines + torch.cat([-second, first], dim=-1) * sines


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """See `emu3_kernels.layer_elementwise.swiglu`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def fill_norm(out: torch.Tensor, total: torch.Tensor, weight_h: torch.Tensor, eps: float) -> None:
    """See `emu3_kernels.layer_elementwise.fill_norm`."""
    out.copy_(add_norm(total, None, weight_h, eps, 0.0)[1])


def fill_swiglu(out: torch.Tensor, gate_up: torch.Tensor) -> None:
    """See `emu3_kernels.layer_elementwise.fill_swiglu`."""
    out.copy_(swiglu(gate_up))
