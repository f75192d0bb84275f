"""One tile of attention with random inputs, and what torch's attention makes of them."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from emu3_kernels.attention_tile import (
    KeyRanges,
    attention_delta,
    attention_tile,
    attention_tile_backward,
    attention_tile_backward_alone,
)
from torch.nn.functional import scaled_dot_product_attention

from support.triton_interpreter import DEVICE

SCALE = 0.3
# The interpreter knows no fp64.
DTYPES = {"reference": torch.float64, "sdpa": torch.float64, "triton": torch.float32}
TOLERANCE = {
    torch.float64: {"rtol": 1e-11, "atol": 1e-11},
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
}


def documents(*borders):
    return [(start, end, start, end, 1) for start, end in pairwise(borders)]


# Segments, queries, keys. Triton's blocks are of 64 queries and 32 keys, and the reverse.
LAYOUTS = {
    "one document": (documents(0, 70), 70, 70),
    "one token": (documents(0, 1), 1, 1),
    "borders on and beside block edges": (documents(0, 31, 32, 64, 65, 129, 130), 130, 130),
    "documents of one token": (documents(*range(41)), 40, 40),
    "another rank's keys": ([(0, 50, 0, 33, 0), (50, 90, 33, 40, 0)], 90, 40),
    "blocks dealt out": (
        [(0, 64, 0, 64, 1), (64, 128, 0, 128, 1), (128, 150, 90, 150, 1)],
        150,
        150,
    ),
    "more queries than keys": ([(0, 90, 0, 20, 1)], 90, 20),
    "queries that see nothing": ([(3, 20, 0, 17, 1), (70, 75, 40, 80, 0)], 140, 90),
    "nothing at all": ([], 5, 3),
}


@dataclass(frozen=True)
class Case:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    dout: torch.Tensor
    segments: list
    ranges: KeyRanges

    @classmethod
    def draw(cls, layout, backend="reference", heads=2, kv_heads=1, dim=16, dtype=None):
        segments, queries, keys = LAYOUTS[layout] if isinstance(layout, str) else layout
        device = DEVICE if backend == "triton" else "cpu"
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(
            device, dtype or DTYPES[backend]
        )
        return cls(
            q=draw(queries, heads, dim),
            k=draw(keys, kv_heads, dim),
            v=draw(keys, kv_heads, dim),
            dout=draw(queries, heads, dim),
            segments=segments,
            ranges=KeyRanges.of_segments(segments, queries, keys, device),
        )

    def attend(self, backend, **settings):
        """out and lse."""
        return attention_tile(
            self.q, self.k, self.v, self.ranges, scale=SCALE, backend=backend, **settings
        )

    def gradients(self, backend, out, lse, **settings):
        """dq, dk, dv."""
        gradients = [torch.zeros_like(t, dtype=lse.dtype) for t in (self.q, self.k, self.v)]
        self.add_gradients(backend, out, lse, gradients, **settings)
        return gradients

    def add_gradients(self, backend, out, lse, gradients, **settings):
        dq, dk, dv = gradients
        attention_tile_backward(
            *(self.dout, self.q, self.k, self.v, attention_delta(self.dout, out), lse),
            self.ranges,
            scale=SCALE,
            dq_thd=dq,
            dk_thd=dk,
            dv_thd=dv,
            backend=backend,
            **settings,
        )

    def gradients_alone(self, backend, out, lse):
        """dq, dk, dv in the inputs' types."""
        return attention_tile_backward_alone(
            *(self.dout, self.q, self.k, self.v, attention_delta(self.dout, out), lse),
            self.ranges,
            scale=SCALE,
            backend=backend,
        )

    def __call__(self, backend, **settings):
        out, lse = self.attend(backend, **settings)
        return out, lse, *self.gradients(backend, out, lse, **settings)

    def expected(self, dtype=torch.float64):
        """out, lse, dq, dk, dv by torch, with a dense mask made token by token."""
        q, k, v = (t.cpu().to(dtype).requires_grad_() for t in (self.q, self.k, self.v))
        mask = dense(self.segments, len(q), len(k))
        by_head = lambda t: t.transpose(0, 1)[None]
        out = scaled_dot_product_attention(
            *map(by_head, (q, k, v)), attn_mask=mask, scale=SCALE, enable_gqa=True
        )[0].transpose(0, 1)
        out = torch.where(mask.any(1)[:, None, None], out, 0.0)
        k_hkd = by_head(k)[0].repeat_interleave(q.shape[1] // k.shape[1], 0)
        scores = (by_head(q)[0] @ k_hkd.mT * SCALE).masked_fill(~mask, -torch.inf)
        gradients = torch.autograd.grad(out, (q, k, v), self.dout.cpu().to(dtype))
        return [t.detach() for t in (out, scores.logsumexp(-1), *gradients)]


def dense(segments, queries, keys):
    """Who sees whom, bool [queries, keys]."""
    mask = torch.zeros(queries, keys, dtype=torch.bool)
    for q_start, q_end, k_start, k_end, causal in segments:
        for query in range(q_start, q_end):
            last = k_end - (q_end - 1 - query) if causal else k_end
            mask[query, k_start : max(last, k_start)] = True
    return mask


def assert_same(results, expected):
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(
            result.cpu(), wanted.to(result.dtype).cpu(), **TOLERANCE[result.dtype]
        )
