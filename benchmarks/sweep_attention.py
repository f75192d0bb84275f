"""Attention kernels with other launch shapes: forward, and backward with one kernel changed.

Stage 1's 5,120 tokens, an image and a text, with the heads of a rank. The first shape of a kernel
is the one in use. TRITON_INTERPRET=1 runs them on a CPU, for a look.
"""

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from emu3_kernels.attention_tile import (
    Dropout,
    KeyRanges,
    attention_delta,
    attention_tile,
    attention_tile_backward,
)
from harness import Case, main
from sweeps import ATTENTION, QUICK, SWEPT, Heads, attention_launch

ON_GPU = os.environ.get("TRITON_INTERPRET") != "1"
TOKENS, DIM = (5120, 128) if ON_GPU else (64, 16)
TRAINED = TOKENS * 4300 // 5120  # tokens of the image


class Problem:
    """A rank's attention, forward and backward."""

    def __init__(self, shape: Heads):
        dtype, device = (torch.bfloat16, "cuda") if ON_GPU else (torch.float16, "cpu")
        torch.manual_seed(0)
        draw = lambda heads: torch.randn(TOKENS, heads, DIM, device=device).to(dtype)
        self.inputs = draw(shape.heads), draw(shape.kv_heads), draw(shape.kv_heads)
        self.dout = draw(shape.heads)
        segments = [[0, TRAINED, 0, TRAINED, 1], [TRAINED, TOKENS, TRAINED, TOKENS, 1]]
        self.ranges = KeyRanges.of_segments(segments, TOKENS, TOKENS, device)
        place = torch.arange(TOKENS, device=device)
        dropout = Dropout(shape.dropout, 1, place, place) if shape.dropout else None
        self.options: dict[str, Any] = {"scale": DIM**-0.5, "dropout": dropout, "backend": "triton"}
        self.out, self.lse = self._forward()
        self.delta = attention_delta(self.dout, self.out)

    def _forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        return attention_tile(*self.inputs, self.ranges, **self.options)

    def run(self, kernel: str, launch: tuple[int, int, int, int]) -> None:
        with attention_launch(kernel, launch):
            if kernel == "forward":
                self._forward()
                return
            dq, dk, dv = (torch.zeros_like(t, dtype=torch.float32) for t in self.inputs)
            attention_tile_backward(
                *(self.dout, *self.inputs, self.delta, self.lse, self.ranges),
                dq_thd=dq, dk_thd=dk, dv_thd=dv, **self.options,
            )  # fmt: skip


def cases(quick: bool) -> Iterator[Case]:
    for shape in SWEPT if ON_GPU else [Heads(2, 1, 0.1)]:
        problem = Problem(shape)
        for kernel, launches in ATTENTION.items():
            for launch in launches[:QUICK] if quick else launches:
                name = "{}x{}, {} warps, {} stages".format(*launch)
                run = partial(problem.run, kernel, launch)
                yield Case(f"{kernel}/{shape}", name, run, tensors=True)


if __name__ == "__main__":
    main(cases, repeats=10)
