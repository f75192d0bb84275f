"""Decode steps with random keys, and what their attention is in fp64."""

from dataclasses import dataclass

import torch
from emu3_kernels.decode_attention import decode_attention
from torch.nn.functional import scaled_dot_product_attention

CAPACITY = 300


@dataclass(frozen=True)
class DecodeCase:
    """The arguments of `decode_attention`."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    positions: torch.Tensor
    scale: float = 0.2

    @classmethod
    def draw(
        cls, last: list[int], width: int = 1, group: int = 2, dim: int = 64, kv_heads: int = 2
    ) -> "DecodeCase":
        """In fp64: rows of a larger pool, neighbouring queries up to each row's last position."""
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
        rows = len(last)
        pool = draw(2, rows + 3, kv_heads, CAPACITY, dim)
        positions = torch.tensor(last)[:, None] + torch.arange(1 - width, 1)
        query = draw(rows, width, kv_heads * group, dim)
        return cls(query, *pool[:, 2 : rows + 2], positions)

    def to(self, dtype: torch.dtype, device: str = "cpu") -> "DecodeCase":
        """In another type; keys and values remain slices of a pool."""
        key, value = torch.stack([self.key, self.value]).to(device, dtype)
        return DecodeCase(self.query.to(device, dtype), key, value, self.positions.to(device))

    def attend(self, backend: str = "auto", **settings: int) -> torch.Tensor:
        inputs = (self.query, self.key, self.value, self.positions, self.scale)
        return decode_attention(*inputs, backend=backend, **settings)

    def exact(self) -> torch.Tensor:
        """torch's attention in fp64, one query at a time, on the CPU."""
        attend = lambda *qkv: scaled_dot_product_attention(*qkv, scale=self.scale)
        return self.to(torch.float64)._by_queries(attend)

    def plain(self) -> torch.Tensor:
        """Two products and a softmax in the case's own type, one query at a time."""
        attend = lambda q, k, v: (q @ k.mT * self.scale).softmax(-1) @ v
        return self._by_queries(attend)

    def _by_queries(self, attend) -> torch.Tensor:
        group, outs = self.query.shape[2] // self.key.shape[1], []
        for row, positions in enumerate(self.positions.tolist()):
            for query, position in zip(self.query[row], positions, strict=True):
                key, value = (t[row, :, : position + 1] for t in (self.key, self.value))
                outs.append(attend(query.unflatten(0, (-1, group)), key, value))
        return torch.stack(outs).view_as(self.query)


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative distance."""
    return ((found.double().cpu() - exact.cpu()).norm() / exact.norm()).item()
