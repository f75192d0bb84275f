"""Attention of one rank's queries to one rank's keys, one tile of a ring."""

import torch
from emu3_kernels.attention_tile import backends
from emu3_kernels.attention_tile.backends import Backend
from emu3_kernels.attention_tile.delta import attention_delta
from emu3_kernels.attention_tile.dropout import Dropout
from emu3_kernels.attention_tile.ranges import KeyRanges
from emu3_kernels.attention_tile.segments import Segment
from emu3_kernels.attention_tile.tile import Tile

__all__ = [
    "Backend",
    "Dropout",
    "KeyRanges",
    "Segment",
    "Tile",
    "attention_delta",
    "attention_tile",
    "attention_tile_alone",
    "attention_tile_backward",
    "attention_tile_backward_alone",
]


def attention_tile(
    q_thd: torch.Tensor,
    k_thd: torch.Tensor,
    v_thd: torch.Tensor,
    ranges: KeyRanges,
    *,
    scale: float,
    running: tuple[torch.Tensor, torch.Tensor] | None = None,
    dropout: Dropout | None = None,
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention over the keys of one tile, merged with the result of earlier tiles.

    No autograd: the backward of a whole ring needs out and lse over all tiles, see
    `attention_tile_backward`.

    Args:
        q_thd: queries, [t, h, d].
        k_thd: keys, [t_k, kv, d]; h is a multiple of kv, neighbouring heads share keys.
        v_thd: values, like the keys.
        ranges: which keys each query sees.
        scale: of the scores, usually d ** -0.5.
        running: (out, lse) of earlier tiles, merged in place and returned.
        dropout: of the probabilities.
        backend: "auto" chooses by device, type and dropout.

    Returns:
        out [t, h, d], fp32 or the queries' wider type, 0 where a query sees nothing.
        lse [h, t], natural log-sum-exp of the scaled scores, same type, -inf there.

    Raises:
        ValueError: shapes, types or a dropout that the backend cannot take.
    """
    tile = Tile(q_thd, k_thd, v_thd, ranges, scale, dropout)
    return backends.choose(backend, tile).forward(tile, running)


def attention_tile_alone(
    q_thd: torch.Tensor,
    k_thd: torch.Tensor,
    v_thd: torch.Tensor,
    ranges: KeyRanges,
    *,
    scale: float,
    dropout: Dropout | None = None,
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attention_tile` where there is no other tile: out is rounded to the queries' type.

    Triton's kernel writes that type at once; fp32 sums are neither stored nor read again.
    """
    tile = Tile(q_thd, k_thd, v_thd, ranges, scale, dropout)
    implementation = backends.choose(backend, tile)
    if implementation.forward_alone is not None:
        return implementation.forward_alone(tile)
    out_thd, lse_ht = implementation.forward(tile, None)
    return out_thd.to(q_thd.dtype), lse_ht


def attention_tile_backward(
    dout_thd: torch.Tensor,
    q_thd: torch.Tensor,
    k_thd: torch.Tensor,
    v_thd: torch.Tensor,
    delta_ht: torch.Tensor,
    lse_ht: torch.Tensor,
    ranges: KeyRanges,
    *,
    scale: float,
    dq_thd: torch.Tensor,
    dk_thd: torch.Tensor,
    dv_thd: torch.Tensor,
    dropout: Dropout | None = None,
    backend: Backend = "auto",
) -> None:
    """Add one tile's part of the gradients into dq, dk and dv.

    Args:
        dout_thd: gradient of the whole attention's out, [t, h, d].
        q_thd, k_thd, v_thd, ranges, scale, dropout: as in the forward pass.
        delta_ht: `attention_delta(dout, out)` of the whole out, over all tiles.
        lse_ht: of the whole attention, over all tiles.
        dq_thd: fp32 or the queries' wider type, like the queries; added to in place.
        dk_thd, dv_thd: the same, like keys and values.
        backend: need not be that of the forward pass.

    Raises:
        ValueError: shapes, types or a dropout that the backend cannot take.
    """
    tile = Tile(q_thd, k_thd, v_thd, ranges, scale, dropout)
    gradients = (dq_thd, dk_thd, dv_thd)
    backends.choose(backend, tile).backward(tile, dout_thd, delta_ht, lse_ht, gradients)


def attention_tile_backward_alone(
    dout_thd: torch.Tensor,
    q_thd: torch.Tensor,
    k_thd: torch.Tensor,
    v_thd: torch.Tensor,
    delta_ht: torch.Tensor,
    lse_ht: torch.Tensor,
    ranges: KeyRanges,
    *,
    scale: float,
    dropout: Dropout | None = None,
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq, dk and dv where there is no other tile, in the inputs' types."""
    tile = Tile(q_thd, k_thd, v_thd, ranges, scale, dropout)
    implementation = backends.choose(backend, tile)
    if implementation.backward_alone is not None:
        return implementation.backward_alone(tile, dout_thd, delta_ht, lse_ht)
    dq, dk, dv = (torch.zeros_like(t, dtype=lse_ht.dtype) for t in tile.inputs)
    implementation.backward(tile, dout_thd, delta_ht, lse_ht, (dq, dk, dv))
    return dq.to(q_thd.dtype), dk.to(k_thd.dtype), dv.to(v_thd.dtype)
