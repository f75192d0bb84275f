"""What a backend of attention tiles consists of, and checks that several backends share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from emu3_kernels.attention_tile.tile import Tile

Running = tuple[torch.Tensor, torch.Tensor]  # out [t, h, d] and lse [h, t], as merged so far
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # dq, dk, dv


@dataclass(frozen=True)
class Implementation:
    """Functions; each backend's module holds one as IMPLEMENTATION.

    Attributes:
        unsupported_reason: why it cannot take a tile; None if it can.
        forward: of (tile, running), see `attention_tile`.
        backward: of (tile, dout, delta, lse, gradients), see `attention_tile_backward`; it adds
            into the gradients.
        forward_alone: of (tile), its out in the queries' type, for kernels that can write that;
            None where fp32 or wider must be rounded afterwards.
        backward_alone: of (tile, dout, delta, lse), its gradients in the inputs' types, likewise.
    """

    unsupported_reason: Callable[[Tile], str | None]
    forward: Callable[[Tile, Running | None], Running]
    backward: Callable[[Tile, torch.Tensor, torch.Tensor, torch.Tensor, Gradients], None]
    forward_alone: Callable[[Tile], Running] | None = None
    backward_alone: Callable[[Tile, torch.Tensor, torch.Tensor, torch.Tensor], Gradients] | None = (
        None
    )


def dropout_unsupported(tile: Tile) -> str | None:
    """The reason of kernels that do not have our dropout."""
    return None if tile.dropout is None else "cannot drop by global positions"


def unsupported_by_gpu_kernels(tile: Tile, largest_dim: int) -> str | None:
    """The reason of kernels for GPUs and 16-bit values that do not have our dropout."""
    dim = tile.q_thd.shape[2]
    if not tile.q_thd.is_cuda:
        return f"runs on GPUs, not on {tile.q_thd.device.type}"
    if tile.q_thd.element_size() != 2:
        return f"does not take {tile.q_thd.dtype}"
    if dim % 8 or dim > largest_dim:
        return f"head dimension {dim} is no multiple of 8 up to {largest_dim}"
    return dropout_unsupported(tile)
