"""Attention over a ring: queries stay on their rank, keys and values are sent, step after step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from emu3_kernels.attention_tile import (
    Backend,
    Dropout,
    attention_delta,
    attention_tile,
    attention_tile_alone,
    attention_tile_backward,
    attention_tile_backward_alone,
)
from emu3_kernels.exchange import Exchange
from emu3_kernels.passes import gather
from emu3_kernels.ring_attention.plan import RingPlan, RingStep


@dataclass(frozen=True)
class RingDropout:
    """Attention dropout that depends on the two tokens, never on the rank that computes them.

    Attributes:
        p: probability that an attention weight is dropped.
        seed: of one layer in one training step.
        first_head: number of this rank's first query head, under tensor parallelism.
        first_token: number of the sequence's first token among all that share the seed.
    """

    p: float
    seed: int
    first_head: int = 0
    first_token: int = 0

    def of_step(self, plan: RingPlan, step: RingStep) -> Dropout:
        """The dropout of one tile."""
        return Dropout(
            p=self.p,
            seed=self.seed,
            query_index_t=plan.numbers(plan.queries_t, self.first_token),
            key_index_t=plan.numbers(step.keys_k, self.first_token),
            first_head=self.first_head,
        )


@dataclass(frozen=True)
class Ring:
    """A plan and what all its tiles share.

    Attributes:
        plan: of this rank.
        exchange: communication with the other ranks of the plan.
        scale: of the scores, 1 / sqrt(head dimension) as a rule.
        dropout: None for none.
        backend: of the tiles, see `attention_tile`.
    """

    plan: RingPlan
    exchange: Exchange
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
            out [t, heads, d] and log-sum-exp [heads, t] in fp32 (fp64 of fp64 inputs); out in the
            query's type where the plan has one step. Queries that see nothing have 0 and -inf.
        """
        first = self.plan.steps[0]
        if self.plan.size == 1 and first.ranges is not None:
            inputs = (query_thd, key_thd, value_thd)
            return attention_tile_alone(*inputs, first.ranges, **self._options(first))
        running = None
        for step, key, value in self._steps(key_thd, value_thd):
            if step.ranges is not None:
                running = attention_tile(
                    query_thd, key, value, step.ranges, running=running, **self._options(step)
                )
        assert running is not None  # the first step always has ranges
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
        """Gradients of query, key and value, in fp32 (fp64 of fp64 inputs), or in the inputs' types
        where the plan has one step.

        Keys and values are sent once more. Their gradients are sent back to the rank that holds
        them and added there in the order of the steps, so that sums are the same at every repeat.
        """
        delta_ht = attention_delta(dout_thd, out_thd)
        first = self.plan.steps[0]
        if self.plan.size == 1 and first.ranges is not None:
            inputs = (dout_thd, query_thd, key_thd, value_thd, delta_ht, lse_ht)
            return attention_tile_backward_alone(*inputs, first.ranges, **self._options(first))
        dtype = lse_ht.dtype
        dquery = torch.zeros_like(query_thd, dtype=dtype)
        own = key_thd.new_zeros(2, *key_thd.shape, dtype=dtype)
        add_returned: Callable[[], None] = lambda: None
        for number, (step, key, value) in enumerate(self._steps(key_thd, value_thd)):
            gradients = own if number == 0 else own.new_zeros(2, *key.shape)
            if step.ranges is not None:
                attention_tile_backward(
                    dout_thd, query_thd, key, value, delta_ht, lse_ht, step.ranges,
                    dq_thd=dquery, dk_thd=gradients[0], dv_thd=gradients[1], **self._options(step),
                )  # fmt: skip
            add_returned()
            if number:
                add_returned = self._return_gradients(step, gradients, own)
        add_returned()
        return dquery, own[0], own[1]

    def _steps(
        self, key_thd: torch.Tensor, value_thd: torch.Tensor
    ) -> Iterator[tuple[RingStep, torch.Tensor, torch.Tensor]]:
        """Each step with its keys and values; while the caller uses them the next are sent."""
        steps = self.plan.steps
        receive: Callable[[], Any] = lambda: (key_thd, value_thd)  # the first step's are our own
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            key, value = receive()
            if following is not None:
                receive = self._send(following, key_thd, value_thd)
            yield step, key, value

    def _send(
        self, step: RingStep, key_thd: torch.Tensor, value_thd: torch.Tensor
    ) -> Callable[[], torch.Tensor]:
        """Start to send the rows that the target's queries see; what is returned receives."""
        outgoing = key_thd.new_empty(2, len(step.sent_rows), *key_thd.shape[1:])
        gather(key_thd, step.sent_rows, outgoing[0])
        gather(value_thd, step.sent_rows, outgoing[1])
        incoming = key_thd.new_empty(2, len(step.keys_k), *key_thd.shape[1:])
        wait = self.exchange.send_receive(outgoing, step.target, incoming, step.source)

        def receive() -> torch.Tensor:
            wait()
            return incoming

        return receive

    def _return_gradients(
        self, step: RingStep, gradients: torch.Tensor, own: torch.Tensor
    ) -> Callable[[], None]:
        """Start to send a step's gradients back; what is returned adds those of our own keys."""
        incoming = own.new_empty(2, len(step.sent_rows), *own.shape[2:])
        wait = self.exchange.send_receive(gradients, step.source, incoming, step.target)

        def add_returned() -> None:
            wait()
            own[:, step.sent_rows] += incoming

        return add_returned

    def _options(self, step: RingStep) -> dict[str, Any]:
        dropout = self.dropout.of_step(self.plan, step) if self.dropout else None
        return {"scale": self.scale, "dropout": dropout, "backend": self.backend}


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
        saved = ctx.saved_tensors  # torch's activation checkpointing gives them once
        gradients = ctx.ring.backward(dout, *saved)
        return *(gradient.to(saved[0].dtype) for gradient in gradients), None


def ring_attention(
    query_thd: torch.Tensor,
    key_thd: torch.Tensor,
    value_thd: torch.Tensor,
    plan: RingPlan,
    exchange: Exchange,
    *,
    scale: float,
    dropout: RingDropout | None = None,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Causal attention inside documents whose tokens lie on several ranks; differentiable.

    Keys and values that a rank needs are sent to it directly by the ranks that hold them, the next
    while the present ones are used. Out, log-sum-exp and all gradients are summed in fp32
    and rounded once, so the error does not grow with the number of ranks. All ranks of the ring
    must call this, and its backward, in the same order.

    Args:
        query_thd: [t, heads, d], this rank's tokens in the order of the plan.
        key_thd: [t, kv_heads, d], heads a multiple of kv_heads; value_thd likewise.
        plan: of this rank, see `RingPlan.build`.
        exchange: communication among the ranks of the plan: `NoExchange()` for one rank, else
            `GroupExchange(group, point_to_point=True)`.
        scale: of the scores, 1 / sqrt(d) as a rule.

    Returns:
        [t, heads, d] in the dtype of the query; 0 for queries that see nothing.

    Raises:
        ValueError: shapes, plan and exchange do not fit each other, or the backend cannot do this.
    """
    if (plan.rank, plan.size) != (exchange.rank, exchange.size):
        raise ValueError(
            f"the plan is for rank {plan.rank} of {plan.size}, the exchange for rank "
            f"{exchange.rank} of {exchange.size}"
        )
    if len(query_thd) != len(plan.queries_t):
        raise ValueError(f"{len(query_thd)} queries, but a plan for {len(plan.queries_t)}")
    ring = Ring(plan, exchange, scale, dropout, backend)
    return _RingAttention.apply(query_thd, key_thd, value_thd, ring)
