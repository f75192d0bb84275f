"""The row passes of the head's loss with other blocks and warps, and CUDA's pass where it is built.

Logits of 4,096 tokens over Emu3's vocabulary. `gb_s` counts each pass's reads and writes.
TRITON_INTERPRET=1 runs them on a CPU, for a look.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial

import torch
from emu3_kernels import cuda
from emu3_kernels.linear_cross_entropy import triton_rows
from harness import Case, main
from sweeps import QUICK, ROWS, VOCABULARY, rows_launch

ON_GPU = os.environ.get("TRITON_INTERPRET") != "1"
TOKENS, COLUMNS = (4096, VOCABULARY) if ON_GPU else (4, 5000)


def cases(quick: bool) -> Iterator[Case]:
    device = "cuda" if ON_GPU else "cpu"
    torch.manual_seed(0)
    stride = -(-COLUMNS // 128) * 128
    logits = torch.randn(TOKENS, stride, device=device).to(torch.float16)
    logits = logits[:, :COLUMNS]
    labels = torch.randint(COLUMNS, (TOKENS,), device=device)
    out = logits.view(torch.bfloat16) if ON_GPU else logits
    # A weight of 0 leaves logits that stay in their range however often the pass runs.
    weights, lse = torch.zeros(2, TOKENS, device=device)
    passes: dict[str, tuple[Callable[[], object], int]] = {
        "statistics": (partial(triton_rows.ROWS.statistics, logits, labels), 1),
        "gradient": (
            lambda: triton_rows.ROWS.gradient(logits, labels, weights, None, lse, 0.0, out),
            2,
        ),
    }
    for name, (run, moves) in passes.items():
        figures = partial(_bandwidth, moves * logits.numel() * logits.element_size())
        for block, warps in ROWS[:QUICK] if quick else ROWS:
            tried = partial(_with, run, block, warps)
            yield Case(name, f"{block:,} columns, {warps} warps", tried, figures, tensors=True)
    if ON_GPU and cuda.available():
        three = torch.empty(3, TOKENS, device=device)
        run = lambda: cuda.cross_entropy_rows(logits, labels, weights, *three)
        figures = partial(_bandwidth, 2 * logits.numel() * logits.element_size())
        yield Case("both", "cuda, one read", run, figures, tensors=True)


def _with(run: Callable[[], object], block: int, warps: int) -> None:
    with rows_launch(block, warps):
        run()


def _bandwidth(size: int, result: object, seconds: float) -> dict[str, float]:
    return {"gb_s": size / seconds / 1e9}


if __name__ == "__main__":
    main(cases, repeats=10)
