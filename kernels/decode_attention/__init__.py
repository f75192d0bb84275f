"""Attention of a decode step: a few new queries a row over a pool of keys, without gradients."""

import torch
from emu3_kernels.decode_attention.backends import BACKENDS, Backend, choose
from emu3_kernels.decode_attention.positions import Positions
from emu3_kernels.decode_attention.step import Step

__all__ = ["BACKENDS", "Backend", "Positions", "decode_attention"]


def decode_attention(
    query_bwhd: torch.Tensor,
    key_bkcd: torch.Tensor,
    value_bkcd: torch.Tensor,
    positions_bw: torch.Tensor | Positions,
    scale: float,
    *,
    longest: int | None = None,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Each query sees its row's keys from the first up to its own position.

    On a GPU the host does not wait for the positions, and what it launches depends on shapes and
    `longest` alone, so the call can be captured in a CUDA graph.

    Args:
        query_bwhd: [rows, width, heads, d]: one query a row, or some neighbouring ones.
        key_bkcd: [rows, KV heads, capacity, d], usually a slice of a pool. A group of heads / KV
            heads neighbouring query heads shares a KV head. What lies past the last position of a
            row has no effect, but must be finite.
        value_bkcd: like the keys.
        positions_bw: integers [rows, width], on the device, ascending in each row: query w of row b
            sees keys 0 ... positions_bw[b, w]. The layers of a step may share them as `Positions`,
            which saves a CPU time; a CUDA graph takes the tensor.
        scale: what the products of queries and keys are multiplied by.
        longest: no position is this large. By default the capacity; a GPU saves time with less.
        backend: "reference" is plain torch; "torch" is torch's attention function; "triton" is ours
            for GPUs, with the keys of a row dealt out to many programs. "auto" takes what fits.

    Returns:
        [rows, width, heads, d] in the queries' type.

    Raises:
        ValueError: shapes or types do not fit together, or the backend cannot take them.
    """
    positions = positions_bw if isinstance(positions_bw, Positions) else Positions(positions_bw)
    step = Step(query_bwhd, key_bkcd, value_bkcd, positions, scale, longest)
    return choose(backend, step)(step)
