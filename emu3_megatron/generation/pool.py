"""The KV pool: keys and values of all rows, allocated once."""

import torch
from torch import Tensor

from emu3_megatron.generation.weights import DecodeWeights

SPARE = 15  # places behind the capacity, for the padding of a call's shorter rows
PREFILL = 1024  # tokens of prompts that a step reads


class KVPool:
    """Keys and values of up to `rows` rows of up to `capacity` tokens each.

    A row's tokens lie one behind the other. What stands behind a row's last token is never read, so
    nothing is cleared when a row leaves.

    Attributes:
        layers: of each layer its keys and values, [2, rows, kv_heads, capacity + SPARE, head_dim].
    """

    def __init__(self, weights: DecodeWeights, rows: int, capacity: int):
        self.rows = rows
        self.capacity = capacity
        self._kv_heads = weights.kv_heads
        self._places = capacity + SPARE
        shape = (2, rows, weights.kv_heads, self._places, weights.head_dim)
        # Zeros: attention multiplies what it must not see by 0, and 0 times NaN is NaN.
        new_layer = lambda: torch.zeros(shape, dtype=weights.dtype, device=weights.device)
        self.layers = [new_layer() for _ in weights.layers]
        kinds, heads = torch.arange(2), torch.arange(weights.kv_heads)
        first_gk = (kinds * rows * weights.kv_heads + heads[:, None]) * self._places
        self._first_gk = first_gk.to(weights.device)

    def places(self, first_row: int, positions_bw: Tensor) -> Tensor:
        """Where the keys and values of tokens lie in a flat layer, int64 [b * w * kv_heads * 2].

        Args:
            first_row: of b neighbouring rows.
            positions_bw: of the tokens in their rows.
        """
        rows_b = torch.arange(first_row, first_row + len(positions_bw), device=positions_bw.device)
        starts_b1 = (rows_b * (self._kv_heads * self._places))[:, None]
        return ((starts_b1 + positions_bw)[..., None, None] + self._first_gk).flatten()

    def write(self, layer: int, places_n: Tensor, keys_values_nd: Tensor) -> None:
        """Store keys and values [b * w * kv_heads * 2, head_dim] at their places."""
        flat = self.layers[layer].view(-1, keys_values_nd.shape[-1])
        flat.index_copy_(0, places_n, keys_values_nd)

    def read(self, layer: int, first_row: int, rows: int) -> tuple[Tensor, Tensor]:
        """Views of the keys and values of rows: [rows, kv_heads, capacity + SPARE, head_dim]."""
        keys, values = self.layers[layer][:, first_row : first_row + rows]
        return keys, values

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row of `length` tokens."""
        for layer in self.layers:
            layer[:, target, :, :length] = layer[:, source, :, :length]
