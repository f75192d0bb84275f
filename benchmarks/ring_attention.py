"""Attention tiles beside torch's kernels, a rank of a ring beside one call, and errors by ranks.

Emu3's heads and 131,072 tokens on a GPU (32,768 for tiles of one document), and the heads, tokens
and dropout of a rank of stage 1 (TP 4) and stage 2 (TP 8, CP 8); a few heads and tokens, in fp32,
on a CPU. `error` is that of out (forward) or of the queries' gradient (backward) at 64 queries,
relative to fp64.

The rank of a ring is simulated: all its steps one after the other, its neighbours' keys copied from
memory on the same device. It shows what cutting attention into tiles costs, not what a network
does to it.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from dispatch import dispatch_rows
from emu3_kernels.attention_tile import (
    Dropout,
    KeyRanges,
    attention_delta,
    attention_tile,
    attention_tile_backward,
)
from emu3_kernels.exchange import Exchange, NoExchange
from emu3_kernels.ring_attention import Ring, RingDropout, RingPlan
from harness import Case, main
from simulated_packs import simulated_packs
from sweeps import HEADS, Heads
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.simulated_ranks import simulate

from emu3_megatron.context_parallel.dispatch import dispatch

EMU3 = Heads(32, 8, 0.0)
STAGE_1 = "image and text"
FULL = 131_072  # tokens of the packs that smaller ones are scaled from
KINDS = ("image", "mixed", "dense", "video")
CHECKED = 64  # queries


@dataclass(frozen=True, eq=False)
class Problem:
    """One attention over a pack.

    Attributes:
        query, key, value, dout: [t, heads, d].
        boundaries: int64 [documents + 1].
        dropout: chance that an attention weight is dropped.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    dout: torch.Tensor
    boundaries: torch.Tensor
    dropout: float = 0.0

    @classmethod
    def random(cls, kind: str, tokens: int, shape: Heads = EMU3) -> "Problem":
        """In bf16 on a GPU; four heads over one, of 64, in fp32 on a CPU.

        `kind` may be STAGE_1: an image of 4,300 tokens and a text, or a part of that.
        """
        on_gpu = torch.cuda.is_available()
        heads, kv_heads = (shape.heads, shape.kv_heads) if on_gpu else (4, 1)
        dim = 128 if on_gpu else 64
        options: dict[str, Any] = {"dtype": torch.bfloat16, "device": "cuda"} if on_gpu else {}
        torch.manual_seed(0)
        draw = lambda heads: torch.randn(tokens, heads, dim, **options)
        if kind == STAGE_1:
            boundaries = torch.tensor([0, tokens * 4300 // 5120, tokens])
        else:
            whole = torch.from_numpy(simulated_packs(kind, number=1)[0])
            boundaries = (whole * tokens // FULL).unique()
        inputs = draw(heads), draw(kv_heads), draw(kv_heads), draw(heads)
        return cls(*inputs, boundaries, shape.dropout)

    @property
    def scale(self) -> float:
        return self.query.shape[2] ** -0.5

    def ranges(self) -> KeyRanges:
        segments = [[a, b, a, b, 1] for a, b in pairwise(self.boundaries.tolist())]
        tokens = len(self.query)
        return KeyRanges.of_segments(segments, tokens, tokens, self.query.device)

    def drop(self) -> Dropout | None:
        place = torch.arange(len(self.query), device=self.query.device)
        return Dropout(self.dropout, 1, place, place) if self.dropout else None

    def tera(self, pairs: float, seconds: float, products: int) -> dict[str, float]:
        """TFLOP/s of so many products of a head's vectors for each pair of query and key."""
        _, heads, dim = self.query.shape
        return {"tflops": 2 * products * pairs * heads * dim / seconds / 1e12}


def pairs_of(ranges: KeyRanges) -> int:
    return int((ranges.last_q - ranges.first_q).clamp(min=0).sum())


def exact(problem: Problem, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Out and the queries' gradient of some rows in fp64, [rows, heads, d]."""
    ranges = problem.ranges()
    group = problem.query.shape[1] // problem.key.shape[1]
    outs, gradients = [], []
    for row in rows.tolist():
        seen = slice(int(ranges.first_q[row]), int(ranges.last_q[row]))
        query = problem.query[row].double().requires_grad_()
        key, value = (
            t[seen].double().repeat_interleave(group, 1) for t in (problem.key, problem.value)
        )
        weights = (torch.einsum("hd,khd->hk", query, key) * problem.scale).softmax(1)
        out = torch.einsum("hk,khd->hd", weights, value)
        outs.append(out.detach())
        gradients += torch.autograd.grad(out, query, problem.dout[row].double())
    return torch.stack(outs), torch.stack(gradients)


def error(found: torch.Tensor, right: torch.Tensor) -> float:
    return ((found.double() - right).norm() / right.norm()).item()


def rank_cases(quick: bool) -> Iterator[Case]:
    """The heads of one rank, with dropout and without: 5,120 tokens as in stage 1, and 16,384."""
    for shape, keeps_all in product(HEADS[:1] if quick else HEADS, (False, True)):
        shape = shape._replace(dropout=0.0 if keeps_all else 0.1)
        for kind, tokens in ((STAGE_1, 5120), ("mixed", 16_384)):
            problem = Problem.random(kind, 256 if quick else tokens, shape)
            pairs = pairs_of(problem.ranges())
            backend = "triton" if torch.cuda.is_available() else "reference"
            runs = zip(("forward", "backward"), tile(problem, backend), (2, 5), strict=True)
            for name, run, products in runs:
                figures = lambda result, seconds, p=problem, n=pairs, k=products: p.tera(
                    n, seconds, k
                )
                yield Case(f"rank/{shape}/{kind}/{name}", "emu3", run, figures, tensors=True)


def tile_cases(quick: bool, peers: bool) -> Iterator[Case]:
    """Ours or the others, forward and backward, on every kind of pack."""
    on_gpu = torch.cuda.is_available()
    tokens = (16_384 if quick else FULL) if on_gpu else (512 if quick else 2048)
    for kind in KINDS:
        dense = kind == "dense" and on_gpu  # all of it would take a minute and say no more
        problem = Problem.random(kind, min(tokens, 32_768) if dense else tokens)
        rows = torch.arange(0, len(problem.query), len(problem.query) // CHECKED)
        right_out, right_gradient = exact(problem, rows)
        pairs = pairs_of(problem.ranges())

        def after(
            result: torch.Tensor,
            seconds: float,
            right: torch.Tensor,
            products: int,
            rows: torch.Tensor = rows,
            problem: Problem = problem,
            pairs: int = pairs,
        ) -> dict[str, float]:
            return {"error": error(result[rows], right), **problem.tera(pairs, seconds, products)}

        for name, (forward, backward) in implementations(problem, on_gpu, peers).items():
            figures = partial(after, right=right_out, products=2)
            yield Case(f"tile/{kind}/forward", name, forward, figures, tensors=True)
            figures = partial(after, right=right_gradient, products=5)
            yield Case(f"tile/{kind}/backward", name, backward, figures, tensors=True)


Run = Callable[[], torch.Tensor]


def implementations(problem: Problem, on_gpu: bool, peers: bool) -> dict[str, tuple[Run, Run]]:
    """By name, what computes out, and what computes gradients and returns the queries'."""
    if not peers:
        ours = ["triton", "flash", "flash_attn", "cudnn"] if on_gpu else ["sdpa", "reference"]
        return {_name(name): tile(problem, name) for name in ours}
    others: dict[str, Callable[..., torch.Tensor]] = {"torch": dense_mask}
    if on_gpu:
        others = {"flash varlen": flash_varlen, "cudnn, by document": cudnn, "flex": flex}
    return {name: by_autograd(problem, peer) for name, peer in others.items()}


def _name(backend: str) -> str:
    """What "auto" would take is simply ours."""
    return "emu3" if backend in ("triton", "sdpa") else f"emu3 ({backend})"


def tile(problem: Problem, backend: Any) -> tuple[Run, Run]:
    ranges = problem.ranges()
    options = {"scale": problem.scale, "backend": backend, "dropout": problem.drop()}
    inputs = (problem.query, problem.key, problem.value)
    saved: list[torch.Tensor] = []

    def forward() -> torch.Tensor:
        return attention_tile(*inputs, ranges, **options)[0]

    def backward() -> torch.Tensor:
        if not saved:
            saved.extend(attention_tile(*inputs, ranges, **options))
        out, lse = saved
        dq, dk, dv = (torch.zeros_like(t, dtype=torch.float32) for t in inputs)
        attention_tile_backward(
            problem.dout, *inputs, attention_delta(problem.dout, out), lse, ranges,
            dq_thd=dq, dk_thd=dk, dv_thd=dv, **options,
        )  # fmt: skip
        return dq

    return forward, backward


def by_autograd(problem: Problem, attend: Callable[..., torch.Tensor]) -> tuple[Run, Run]:
    leaves = [t.detach().requires_grad_() for t in (problem.query, problem.key, problem.value)]
    saved: list[torch.Tensor] = []

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return attend(problem, *leaves)

    def backward() -> torch.Tensor:
        if not saved:
            saved.append(attend(problem, *leaves))
        return torch.autograd.grad(saved[0], leaves, problem.dout, retain_graph=True)[0]

    return forward, backward


def dense_mask(problem: Problem, *inputs: torch.Tensor) -> torch.Tensor:
    ranges, places = problem.ranges(), torch.arange(len(problem.query))
    mask = (ranges.first_q[:, None] <= places) & (places < ranges.last_q[:, None])
    query, key, value = (t.transpose(0, 1)[None] for t in inputs)
    out = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    return out[0].transpose(0, 1)


def flash_varlen(problem: Problem, *inputs: torch.Tensor) -> torch.Tensor:
    bounds = problem.boundaries.int().to(inputs[0].device)
    longest = int(problem.boundaries.diff().max())
    return torch.ops.aten._flash_attention_forward(
        *inputs, bounds, bounds, longest, longest, 0.0, True, False
    )[0]


def cudnn(problem: Problem, *inputs: torch.Tensor) -> torch.Tensor:
    outs = []
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        for start, end in pairwise(problem.boundaries.tolist()):
            query, key, value = (t[start:end].transpose(0, 1)[None] for t in inputs)
            out = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


def flex(problem: Problem, *inputs: torch.Tensor) -> torch.Tensor:
    query, key, value = (t.transpose(0, 1)[None] for t in inputs)
    out = _flex(problem)(query, key, value)
    return out[0].transpose(0, 1)


@cache
def _flex(problem: Problem) -> Callable[..., torch.Tensor]:
    """At the first call and not before: what fails here must not end the benchmark."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    tokens, device = len(problem.query), problem.query.device
    sizes = problem.boundaries.diff()
    documents = torch.arange(len(sizes)).repeat_interleave(sizes).to(device)
    visible = lambda b, h, q, k: (documents[q] == documents[k]) & (q >= k)
    mask = create_block_mask(visible, None, None, tokens, tokens, device=device, _compile=True)
    return partial(torch.compile(flex_attention), block_mask=mask, enable_gqa=True)


@dataclass(frozen=True)
class FromMemory(NoExchange):
    """One rank of several: what it receives is copied from memory, what it sends is dropped."""

    _stored: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)

    def send_receive(
        self, outgoing: torch.Tensor, target: int, incoming: torch.Tensor, source: int
    ) -> Callable[[], None]:
        if incoming.shape not in self._stored:
            self._stored[incoming.shape] = torch.randn_like(incoming)
        incoming.copy_(self._stored[incoming.shape])
        return lambda: None


def ring_cases(quick: bool, ranks: int = 8) -> Iterator[Case]:
    """All steps of the rank with the most work, beside one call over the whole sequence."""
    on_gpu = torch.cuda.is_available()
    tokens = (16_384 if quick else FULL) if on_gpu else (1024 if quick else 4096)
    backend = "triton" if on_gpu else "sdpa"
    shapes = [EMU3] if quick else [EMU3, HEADS[1]]  # of one rank of eight: stage 2's
    for shape, kind in product(shapes, ("dense", "mixed")):
        problem = Problem.random(kind, tokens, shape)
        shares = list(torch.from_numpy(dispatch(problem.boundaries.numpy(), ranks)))
        plans = [
            RingPlan.build(shares, problem.boundaries, rank, problem.query.device)
            for rank in range(ranks)
        ]
        busiest = max(plans, key=pairs_of_plan)
        rows = busiest.queries_t
        part = Problem(
            *(t[rows] for t in (problem.query, problem.key, problem.value, problem.dout)),
            problem.boundaries,
            shape.dropout,
        )
        whole_pairs, pairs = pairs_of(problem.ranges()), pairs_of_plan(busiest)
        one_call = tile(problem, backend)
        by_steps = ring_rank(part, busiest, backend)
        for i, (name, products) in enumerate((("forward", 2), ("backward", 5))):
            heads = "" if shape == EMU3 else f"{shape}/"
            case = f"ring/{heads}{kind}/cp{ranks}/{name}"
            figures = lambda result, seconds, p=problem, n=whole_pairs, k=products: p.tera(
                n, seconds, k
            )
            yield Case(case, "emu3 (one call)", one_call[i], figures, tensors=True)
            figures = lambda result, seconds, p=part, n=pairs, k=products: p.tera(n, seconds, k)
            yield Case(case, "emu3", by_steps[i], figures, tensors=True)


def pairs_of_plan(plan: RingPlan) -> int:
    return sum(pairs_of(step.ranges) for step in plan.steps if step.ranges is not None)


def ring_rank(part: Problem, plan: RingPlan, backend: Any) -> tuple[Run, Run]:
    dropout = RingDropout(part.dropout, seed=1) if part.dropout else None
    exchange = FromMemory(plan.rank, plan.size)
    ring = Ring(plan, exchange, part.scale, dropout, backend)
    inputs = (part.query, part.key, part.value)
    saved: list[torch.Tensor] = []

    def forward() -> torch.Tensor:
        return ring.forward(*inputs)[0]

    def backward() -> torch.Tensor:
        if not saved:
            saved.extend(ring.forward(*inputs))
        return ring.backward(part.dout, *inputs, *saved)[0]

    return forward, backward


def error_cases(quick: bool) -> Iterator[Case]:
    """bf16 inputs, one document in blocks of 16 tokens: what more ranks do to the error."""
    tokens = 256 if quick else 512
    problem = Problem.random("dense", tokens)
    whole = [t.bfloat16() for t in (problem.query, problem.key, problem.value, problem.dout)]
    low = Problem(*whole, problem.boundaries)
    right = exact(low, torch.arange(tokens))
    backends = ("reference", "triton") if torch.cuda.is_available() else ("reference", "sdpa")
    for ranks in (1, 2, 4, 8) if quick else (1, 2, 4, 8, 16):
        for backend in backends:
            run = partial(all_ranks, low, ranks, backend)
            figures = lambda found, seconds: {
                "error": error(found[0], right[0]),
                "error_query": error(found[1], right[1]),
            }
            yield Case(f"error/bf16/cp{ranks}", _name(backend), run, figures, tensors=True)


def all_ranks(problem: Problem, ranks: int, backend: Any) -> list[torch.Tensor]:
    """Out and the queries' gradient, in bf16, by simulated ranks that hold every n-th block."""
    blocks = torch.arange(len(problem.query)).split(16)
    shares = [torch.cat(blocks[rank::ranks]) for rank in range(ranks)]

    def one(exchange: Exchange) -> list[torch.Tensor]:
        rows = shares[exchange.rank]
        plan = RingPlan.build(shares, problem.boundaries, exchange.rank, problem.query.device)
        ring = Ring(plan, exchange, problem.scale, backend=backend)
        inputs = [t[rows] for t in (problem.query, problem.key, problem.value)]
        out, lse = ring.forward(*inputs)
        out = out.bfloat16()
        gradients = ring.backward(problem.dout[rows], *inputs, out, lse)
        return [out, gradients[0].bfloat16()]

    order = torch.cat(shares).argsort()
    return [torch.cat(parts)[order] for parts in zip(*simulate(ranks, one), strict=True)]


def cases(quick: bool) -> Iterator[Case]:
    yield from rank_cases(quick)  # few and cheap: they must not be what a time limit cuts off
    yield from ring_cases(quick)
    yield from tile_cases(quick, peers=False)
    yield from error_cases(quick)
    yield from dispatch_rows(quick)
    yield from tile_cases(quick, peers=True)


if __name__ == "__main__":
    main(cases, repeats=3 if torch.cuda.is_available() else 5)
