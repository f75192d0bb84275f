"""Kernels of a decode step beside torch's and flash-attn's: attention and 8-bit linear layers.

Emu3-8B's sizes in bf16 on a GPU; a few heads, in fp32, on a CPU. `gb_s` is what must be read (keys
and values, or the weight as it is stored) over the time: on a GPU the memory's bandwidth is the
floor. A GPU replays each call 20 times as a CUDA graph, as generation does, on tensors that do not
fit the L2 cache together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from emu3_kernels.decode_attention import decode_attention
from emu3_kernels.weight_only import linear, quantize
from harness import Case, main
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import scaled_dot_product_attention

CALLS = 20  # of a CUDA graph, in turn on COPIES of the inputs
COPIES = 4
Attend = Callable[["Step"], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Step:
    """Rows that each see `keys` keys of a pool that could hold more."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    positions: torch.Tensor
    keys: int

    @classmethod
    def random(cls, rows: int, keys: int, options: dict[str, Any]) -> "Step":
        heads, kv_heads, dim = (32, 8, 128) if torch.cuda.is_available() else (4, 2, 64)
        query = torch.randn(rows, 1, heads, dim, **options)
        pool = torch.randn(2, rows, kv_heads, keys + 256, dim, **options)
        positions = torch.full((rows, 1), keys - 1, device=query.device)
        return cls(query, pool[0], pool[1], positions, keys)

    @property
    def bytes(self) -> int:
        """Of the keys and values that are seen."""
        return 2 * self.key[:, :, : self.keys].numel() * self.key.element_size()

    @property
    def seen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values; the host of a real step does not know how many."""
        return self.key[:, :, : self.keys], self.value[:, :, : self.keys]

    def error(self, out: torch.Tensor) -> float:
        tensors = (t.double() for t in (self.query.transpose(1, 2), *self.seen))
        exact = scaled_dot_product_attention(*tensors, enable_gqa=True).transpose(1, 2)
        return ((out.double() - exact).norm() / exact.norm()).item()


def ours(step: Step, backend: Any) -> torch.Tensor:
    scale = step.query.shape[-1] ** -0.5
    return decode_attention(
        step.query, step.key, step.value, step.positions, scale, backend=backend
    )


def by_torch(step: Step) -> torch.Tensor:
    """Without a mask, as only rows of equal lengths allow."""
    query = step.query.transpose(1, 2)
    return scaled_dot_product_attention(query, *step.seen, enable_gqa=True).transpose(1, 2)


def by_flash_attn(step: Step) -> torch.Tensor:
    from flash_attn import flash_attn_with_kvcache

    key, value = (t.transpose(1, 2) for t in (step.key, step.value))
    lengths = step.positions[:, 0].int() + 1
    return flash_attn_with_kvcache(step.query, key, value, cache_seqlens=lengths)


def attention_cases(quick: bool, on_gpu: bool, options: dict[str, Any]) -> Iterator[Case]:
    sizes = [(2, 8190), (16, 8190), (2, 131_072)] if on_gpu else [(2, 1000), (16, 1000)]
    implementations: dict[str, Attend] = {
        "emu3": partial(ours, backend="auto"),
        "torch": by_torch,
    }
    if on_gpu:
        implementations["emu3 (torch)"] = partial(ours, backend="torch")
        implementations["flash-attn"] = by_flash_attn
    for rows, keys in sizes[:1] if quick else sizes:
        steps = [Step.random(rows, keys, options) for _ in range(COPIES)]
        for name, attend in implementations.items():
            runs = [partial(attend, step) for step in steps]
            yield _case(f"attention/{rows}x{keys}", name, runs, steps[0].bytes, steps[0].error)


def linear_cases(quick: bool, on_gpu: bool, options: dict[str, Any]) -> Iterator[Case]:
    sizes = [(6144, 4096), (4096, 14336), (28672, 4096)] if on_gpu else [(2048, 512), (32768, 512)]
    kinds = [torch.int8, torch.float8_e4m3fn] if on_gpu else [torch.int8]
    for outputs, inputs in sizes[:1] if quick else sizes:
        weights = [torch.randn(outputs, inputs, **options) for _ in range(COPIES)]
        for rows in (2, 16):
            x, case = torch.randn(rows, inputs, **options), f"linear/{rows}x{inputs}x{outputs}"
            exact = x.double() @ weights[0].double().T
            error = lambda y, exact=exact: ((y.double() - exact).norm() / exact.norm()).item()
            runs = [partial(torch_linear, x, weight) for weight in weights]
            yield _case(case, "torch", runs, weights[0].nbytes, error)
            for kind in kinds:
                stored = [quantize(weight, kind) for weight in weights]
                runs = [partial(linear, x, weight) for weight in stored]
                name = f"emu3 ({str(kind).removeprefix('torch.')})"
                yield _case(case, name, runs, stored[0].nbytes, error)


def _case(
    case: str,
    name: str,
    runs: list[Callable[[], torch.Tensor]],
    read: int,
    error: Callable[[torch.Tensor], float],
) -> Case:
    """One call on a CPU, `CALLS` in a graph on a GPU, captured at the first run."""
    calls = CALLS if torch.cuda.is_available() else 1
    captured: list[tuple[torch.cuda.CUDAGraph, torch.Tensor]] = []

    def run() -> torch.Tensor:
        if calls == 1:
            return runs[0]()
        if not captured:
            captured.append(_capture(runs))
        captured[0][0].replay()
        return captured[0][1]

    figures = lambda out, seconds: {
        "error": error(out),
        "us_a_call": 1e6 * seconds / calls,
        "gb_s": read * calls / seconds / 1e9,
    }
    return Case(case, name, run, figures, tensors=True)


def _capture(runs: list[Callable[[], torch.Tensor]]) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
    """A graph of `CALLS`, and where it writes what the first of the runs gives."""
    runs[0]()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outs = [runs[call % len(runs)]() for call in range(CALLS)]
    return graph, outs[0]


def cases(quick: bool) -> Iterator[Case]:
    on_gpu = torch.cuda.is_available()
    options: dict[str, Any] = {"dtype": torch.bfloat16, "device": "cuda"} if on_gpu else {}
    torch.manual_seed(0)
    yield from attention_cases(quick, on_gpu, options)
    yield from linear_cases(quick, on_gpu, options)


if __name__ == "__main__":
    main(cases)
