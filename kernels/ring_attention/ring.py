"""Attention over a ring: each rank keeps its queries, keys and values come by, hop after hop."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from emu3_kernels.attention_tile import (
    Backend,
    Dropout,
    attention_delta,
    attention_tile,
    attention_tile_backward,
)
from emu3_kernels.passes import gather
from emu3_kernels.ring_attention.hops import Hops
from emu3_kernels.ring_attention.plan import Hop, RingPlan


@dataclass(frozen=True)
class RingDropout:
    """Attention dropout that depends on which tokens meet, never on which rank they meet at.

    Attributes:
        p: probability that an attention weight is dropped.
        seed: of one layer in one step.
        first_head: number of this rank's first query head, under tensor parallelism.
        first_token: number of the sequence's first token among all that share the seed.
    """

    p: float
    seed: int
    first_head: int = 0
    first_token: int = 0

    def at(self, plan: RingPlan, hop: Hop) -> Dropout:
        """What one tile must know."""
        return Dropout(
            p=self.p,
            seed=self.seed,
            query_index_t=plan.queries_t + self.first_token,
            key_index_t=hop.keys_k + self.first_token,
            first_head=self.first_head,
        )


@dataclass(frozen=True)
class Ring:
    """A plan and what every tile of it shares.

    Attributes:
        plan: of this rank.
        hops: how keys travel.
        scale: of the scores, 1 / sqrt(head dimension) as a rule.
        dropout: None for none.
        backend: of the tiles, see `attention_tile`.
    """

    plan: RingPlan
    hops: Hops
    scale: float
    dropout: RingDropout | None = None
    backend: Backend = "auto"

    def forward(
        self, query_thd: torch.Tensor, key_thd: torch.Tensor, value_thd: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attend over all ranks.

        Args:
            query_thd: [t, heads, d], this rank's tokens in the order of the plan.
            key_thd: [t, kv_heads, d]; value_thd likewise.

        Returns:
            out [t, heads, d] and log-sum-exp [heads, t] in fp32 (fp64 of fp64 inputs). Queries
            that see nothing have 0 and -inf.
        """
        running = None
        for hop, key, value in self._arrivals(key_thd, value_thd):
            if hop.ranges is not None:
                running = attention_tile(
                    query_thd, key, value, hop.ranges, running=running, **self._options(hop)
                )
        assert running is not None  # the first hop is a rank's own
        return running

    def backward(
        self,
        dout_thd: torch.Tensor,
        query_thd: torch.Tensor,
        key_thd: torch.Tensor,
        value_thd: torch.Tensor,
        out_thd: torch.Tensor,
        lse_ht: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of query, key and value, in fp32 (fp64 of fp64 inputs).

        Keys travel once more; their gradients travel home and are added there in the order of the
        hops, so that sums are the same at every repeat.
        """
        delta_ht = attention_delta(dout_thd, out_thd)
        dtype = lse_ht.dtype
        dquery = torch.zeros_like(query_thd, dtype=dtype)
        own = key_thd.new_zeros(2, *key_thd.shape, dtype=dtype)
        came_home = _nothing
        for number, (hop, key, value) in enumerate(self._arrivals(key_thd, value_thd)):
            gradients = own if number == 0 else own.new_zeros(2, *key.shape)
            if hop.ranges is not None:
                attention_tile_backward(
                    dout_thd, query_thd, key, value, delta_ht, lse_ht, hop.ranges,
                    dq_thd=dquery, dk_thd=gradients[0], dv_thd=gradients[1], **self._options(hop),
                )  # fmt: skip
            came_home()
            if number:
                came_home = self._send_home(hop, gradients, own)
        came_home()
        return dquery, own[0], own[1]

    def _arrivals(
        self, key_thd: torch.Tensor, value_thd: torch.Tensor
    ) -> Iterator[tuple[Hop, torch.Tensor, torch.Tensor]]:
        """Each hop with its keys and values; the next travel while the caller uses these."""
        hops = self.plan.hops
        arrive: Callable[[], Any] = lambda: (key_thd, value_thd)  # the first hop is at home
        for hop, following in zip(hops, [*hops[1:], None], strict=True):
            key, value = arrive()
            if following is not None:
                arrive = self._send(following, key_thd, value_thd)
            yield hop, key, value

    def _send(
        self, hop: Hop, key_thd: torch.Tensor, value_thd: torch.Tensor
    ) -> Callable[[], torch.Tensor]:
        """Begin a hop: only the rows that the target's queries see leave."""
        outgoing = key_thd.new_empty(2, len(hop.sent_rows), *key_thd.shape[1:])
        gather(key_thd, hop.sent_rows, outgoing[0])
        gather(value_thd, hop.sent_rows, outgoing[1])
        incoming = key_thd.new_empty(2, len(hop.keys_k), *key_thd.shape[1:])
        wait = self.hops.swap(outgoing, hop.target, incoming, hop.source)

        def arrive() -> torch.Tensor:
            wait()
            return incoming

        return arrive

    def _send_home(
        self, hop: Hop, gradients: torch.Tensor, own: torch.Tensor
    ) -> Callable[[], None]:
        """Begin to return a hop's gradients; those of our own keys come back meanwhile."""
        incoming = own.new_empty(2, len(hop.sent_rows), *own.shape[2:])
        wait = self.hops.swap(gradients, hop.source, incoming, hop.target)

        def came_home() -> None:
            wait()
            own[:, hop.sent_rows] += incoming

        return came_home

    def _options(self, hop: Hop) -> dict[str, Any]:
        dropout = self.dropout.at(self.plan, hop) if self.dropout else None
        return {"scale": self.scale, "dropout": dropout, "backend": self.backend}


def _nothing() -> None:
    """The first hop is at home already."""


class _RingAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ring: Ring
    ) -> torch.Tensor:
        out, lse = ring.forward(query, key, value)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.ring = ring
        return out

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        query = ctx.saved_tensors[0]
        gradients = ctx.ring.backward(dout, *ctx.saved_tensors)
        return *(gradient.to(query.dtype) for gradient in gradients), None


def ring_attention(
    query_thd: torch.Tensor,
    key_thd: torch.Tensor,
    value_thd: torch.Tensor,
    plan: RingPlan,
    hops: Hops,
    *,
    scale: float,
    dropout: RingDropout | None = None,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Causal attention inside documents whose tokens lie on several ranks; differentiable.

    Keys and values that a rank needs are sent to it straight from the ranks that hold them, the
    next while the present ones are used. Out, log-sum-exp and all gradients are summed in fp32
    and rounded once, so the error does not grow with the number of ranks. All ranks of the ring
    must call this, and its backward, in the same order.

    Args:
        query_thd: [t, heads, d], this rank's tokens in the order of the plan.
        key_thd: [t, kv_heads, d], heads a multiple of kv_heads; value_thd likewise.
        plan: of this rank, see `RingPlan.build`.
        hops: `NoHops()` for a plan of one rank, `GroupHops`, or one of `simulate`.
        scale: of the scores, 1 / sqrt(d) as a rule.

    Returns:
        [t, heads, d] in the dtype of the query; 0 for queries that see nothing.

    Raises:
        ValueError: shapes, plan and hops do not fit each other, or the backend cannot do this.
    """
    if (plan.rank, plan.size) != (hops.rank, hops.size):
        raise ValueError(
            f"the plan is that of rank {plan.rank} of {plan.size}, the hops are those of rank "
            f"{hops.rank} of {hops.size}"
        )
    if len(query_thd) != len(plan.queries_t):
        raise ValueError(f"{len(query_thd)} queries, but a plan for {len(plan.queries_t)}")
    ring = Ring(plan, hops, scale, dropout, backend)
    return _RingAttention.apply(query_thd, key_thd, value_thd, ring)
