"""Decode steps as CUDA graphs: a step is one launch in place of hundreds."""

from typing import Any

import torch
from torch import Tensor

from emu3_megatron.generation.forward import DecodeForward


class GraphedForward:
    """Captures a decode step at fixed numbers of rows, powers of two, and replays it.

    A graph is captured at its first use and keeps its buffers. Rows that fill up a number are those
    that follow in the pool: they are free, and what they write is never read.

    """

    def __init__(self, forward: DecodeForward):
        self.forward = forward
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._memory: Any = torch.cuda.graph_pool_handle()

    def __call__(self, tokens_bw: Tensor, positions_bw: Tensor) -> Tensor:
        """See `DecodeForward`; rows from the pool's first. The result lasts until the next call."""
        rows, width = tokens_bw.shape
        key = min(1 << (rows - 1).bit_length(), self.forward.pool.rows), width
        if key not in self._captured:
            self._captured[key] = _Captured(self.forward, *key, self._memory)
        return self._captured[key].replay(tokens_bw, positions_bw)[:rows]


class _Captured:
    def __init__(self, forward: DecodeForward, rows: int, width: int, memory: Any):
        device = forward.weights.device
        self._tokens_bw = torch.zeros(rows, width, dtype=torch.int64, device=device)
        # Behind the capacity, where no row has tokens: warming up must not write over them.
        self._positions_bw = torch.full_like(self._tokens_bw, forward.pool.capacity)
        run = lambda: forward(
            self._tokens_bw, self._positions_bw, 0, longest=forward.pool.capacity + width
        )
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()  # compiles kernels and allocates workspaces, which a capture must not
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, of a server or of NCCL, may use the device meanwhile.
        with torch.cuda.graph(self._graph, pool=memory, capture_error_mode="thread_local"):
            self._hidden_bwh = run()

    def replay(self, tokens_bw: Tensor, positions_bw: Tensor) -> Tensor:
        self._tokens_bw[: len(tokens_bw)] = tokens_bw
        self._positions_bw[: len(positions_bw)] = positions_bw
        self._positions_bw[len(positions_bw) :] = 0
        self._graph.replay()
        return self._hidden_bwh
