"""Loss and both gradients in one forward, a chunk of tokens at a time; logits are never kept.

For each chunk: logits = hidden @ weight.T, the first row pass, an exchange among the ranks, the
second row pass that turns logits into their gradient in place, then the products that give the
gradients of hidden states and weight. Backward only scales those.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from emu3_kernels.exchange import Exchange
from emu3_kernels.linear_cross_entropy.rows import Rows
from torch.autograd.function import once_differentiable

# Bytes of logits at a time. On a GPU that is 4,352 tokens of 184,622 bf16 logits: every chunk reads
# the weight and updates its gradient once, which costs 532 / tokens of the products' time (from
# bandwidth and rate of an H100 and 4,096 hidden units). A CPU's products need fewer tokens.
WORKSPACE_BYTES = {"cuda": 3 << 29, "cpu": 1 << 28}
MOST_TOKENS = 8192


@dataclass(frozen=True)
class Task:
    """What does not change from chunk to chunk; see `linear_cross_entropy` for the names."""

    labels_n: torch.Tensor
    weights_n: torch.Tensor
    vocab_size: int
    z_loss: float
    exchange: Exchange
    rows: Rows
    chunk_size: int | None


class Gradients(NamedTuple):
    """Which gradients to compute: by hidden states, by weight."""

    hidden: bool
    weight: bool


def fused_linear_cross_entropy(
    hidden_nh: torch.Tensor,
    weight_vh: torch.Tensor,
    task: Task,
    main_grad_vh: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """The loss, and for each token its largest logit, log-sum-exp and target logit."""
    recording = torch.is_grad_enabled()
    wanted = Gradients(recording and hidden_nh.requires_grad, recording and weight_vh.requires_grad)
    return _Fused.apply(hidden_nh, weight_vh, task, main_grad_vh, wanted)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_nh: torch.Tensor,
        weight_vh: torch.Tensor,
        task: Task,
        main_grad_vh: torch.Tensor | None,
        wanted: Gradients,
    ) -> tuple[torch.Tensor, ...]:
        chunks = _Chunks(task.exchange.gather_tokens(hidden_nh), weight_vh, task, wanted)
        maximum_n, lse_n, target_n = chunks.run()
        nll_n = lse_n - target_n
        loss = (task.weights_n * (nll_n + task.z_loss * lse_n.square())).sum()
        by_hidden_nh = chunks.by_hidden_nh
        if by_hidden_nh is not None:
            by_hidden_nh = task.exchange.sum_tokens(by_hidden_nh)
        ctx.save_for_backward(by_hidden_nh, chunks.by_weight_vh)
        ctx.dtype, ctx.weight_shape = hidden_nh.dtype, weight_vh.shape
        ctx.main_grad_vh = main_grad_vh
        ctx.mark_non_differentiable(maximum_n, lse_n, target_n)
        return loss, maximum_n, lse_n, target_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        by_hidden_nh, by_weight_vh = ctx.saved_tensors
        if by_hidden_nh is not None:
            by_hidden_nh = _scaled(by_hidden_nh, scale, ctx.dtype, by_hidden_nh.shape)
        if by_weight_vh is not None and ctx.main_grad_vh is not None:
            ctx.main_grad_vh[: len(by_weight_vh)].addcmul_(by_weight_vh, scale)
            by_weight_vh = None
        elif by_weight_vh is not None:
            by_weight_vh = _scaled(by_weight_vh, scale, ctx.dtype, ctx.weight_shape)
        return by_hidden_nh, by_weight_vh, None, None, None


def _scaled(
    gradient: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, shape: torch.Size
) -> torch.Tensor:
    """gradient x scale, rounded once; rows that the gradient lacks, those of padding, are zero."""
    result = gradient.new_empty(shape, dtype=dtype)
    torch.mul(gradient, scale, out=result[: len(gradient)])
    result[len(gradient) :].zero_()
    return result


@dataclass(frozen=True)
class _Begun:
    """A chunk whose statistics are still being exchanged among the ranks."""

    tokens: slice
    logits_nv: torch.Tensor
    statistics_3n: torch.Tensor
    gathered: Callable[[], torch.Tensor]


class _Chunks:
    """One run over all chunks.

    Attributes:
        by_hidden_nh: gradient of the loss by the hidden states, from this rank's columns.
        by_weight_vh: by this rank's rows of the weight that are no padding.
    """

    def __init__(
        self, hidden_nh: torch.Tensor, weight_vh: torch.Tensor, task: Task, wanted: Gradients
    ):
        self.task = task
        self.wanted = wanted
        first_row = task.exchange.rank * weight_vh.shape[0]
        num_rows = min(max(task.vocab_size - first_row, 0), weight_vh.shape[0])
        dtype = hidden_nh.dtype
        self.wide = torch.promote_types(dtype, torch.float32)
        if task.rows.at_least_fp32:
            dtype = self.wide
        self.hidden_nh = hidden_nh.to(dtype)
        self.weight_vh = weight_vh[:num_rows].to(dtype)
        # Rows of logits start at multiples of 128 elements, so that every load of them is aligned.
        self.row_length = -(-num_rows // 128) * 128
        self.labels_n = task.labels_n - first_row
        self.by_hidden_nh = self._empty(wanted.hidden, self.hidden_nh)
        self.by_weight_vh = self._empty(wanted.weight, self.weight_vh)
        self.one_read = task.rows.whole and task.exchange.size == 1 and any(wanted)
        self.results_3n = hidden_nh.new_empty(3, hidden_nh.shape[0], dtype=self.wide)

    def _empty(self, wanted: bool, like: torch.Tensor) -> torch.Tensor | None:
        return like.new_empty(like.shape, dtype=self.wide) if wanted else None

    def run(self) -> tuple[torch.Tensor, ...]:
        """Largest logit, log-sum-exp and target logit of each token."""
        tokens = self.hidden_nh.shape[0]
        if not tokens and self.by_weight_vh is not None:
            self.by_weight_vh.zero_()
        size = self._chunk_size(tokens)
        # While the ranks exchange one chunk's statistics, the next chunk's logits are computed.
        ahead = 1 if self.task.exchange.size > 1 and size < tokens else 0
        workspaces = [self._workspace(min(size, tokens)) for _ in range(1 + ahead)]
        begun: deque[_Begun] = deque()
        for start in range(0, tokens, size):
            tokens_here = slice(start, start + size)
            if self.one_read:
                self._whole(tokens_here, workspaces[0])
                continue
            begun.append(self._begin(tokens_here, workspaces[0]))
            workspaces.reverse()
            if len(begun) > ahead:
                self._finish(begun.popleft())
        while begun:
            self._finish(begun.popleft())
        return self.results_3n.unbind()

    def _chunk_size(self, tokens: int) -> int:
        """Chunks as equal as multiples of 128 tokens can be, none over the limit."""
        limit = self.task.chunk_size
        if limit is None:
            row_bytes = self.row_length * self.weight_vh.element_size()
            budget = WORKSPACE_BYTES["cuda" if self.weight_vh.is_cuda else "cpu"]
            limit = min(MOST_TOKENS, max(128, budget // max(row_bytes, 1) // 128 * 128))
        count = max(1, -(-tokens // limit))
        even = -(-tokens // count)
        return max(1, min(limit, -(-even // 128) * 128))

    def _workspace(self, tokens: int) -> torch.Tensor:
        return self.weight_vh.new_empty(tokens, self.row_length)[:, : self.weight_vh.shape[0]]

    def _logits(self, tokens: slice, workspace_nv: torch.Tensor) -> torch.Tensor:
        hidden_nh = self.hidden_nh[tokens]
        logits_nv = workspace_nv[: hidden_nh.shape[0]]
        return torch.mm(hidden_nh, self.weight_vh.T, out=logits_nv)

    def _begin(self, tokens: slice, workspace_nv: torch.Tensor) -> _Begun:
        logits_nv = self._logits(tokens, workspace_nv)
        statistics_3n = self.task.rows.statistics(logits_nv, self.labels_n[tokens])
        gathered = self.task.exchange.all_gather(statistics_3n)
        return _Begun(tokens, logits_nv, statistics_3n, gathered)

    def _finish(self, chunk: _Begun) -> None:
        results_3n = merge(chunk.gathered())
        self.results_3n[:, chunk.tokens] = results_3n
        if not any(self.wanted):
            return
        self.task.rows.gradient(
            chunk.logits_nv,
            self.labels_n[chunk.tokens],
            self.task.weights_n[chunk.tokens],
            chunk.statistics_3n,
            results_3n[1],
            self.task.z_loss,
        )
        self._products(chunk.tokens, chunk.logits_nv)

    def _whole(self, tokens: slice, workspace_nv: torch.Tensor) -> None:
        assert self.task.rows.whole
        logits_nv = self._logits(tokens, workspace_nv)
        weights_n = self.task.weights_n[tokens]
        self.results_3n[:, tokens] = self.task.rows.whole(
            logits_nv, self.labels_n[tokens], weights_n, self.task.z_loss
        )
        self._products(tokens, logits_nv)

    def _products(self, tokens: slice, by_logits_nv: torch.Tensor) -> None:
        if self.by_hidden_nh is not None:
            multiply(by_logits_nv, self.weight_vh, out=self.by_hidden_nh[tokens])
        if self.by_weight_vh is not None:
            hidden_nh = self.hidden_nh[tokens]
            add = tokens.start > 0
            multiply(by_logits_nv.T, hidden_nh, out=self.by_weight_vh, add=add)


def merge(statistics_r3n: torch.Tensor) -> torch.Tensor:
    """Largest logit, log-sum-exp and target logit over the columns of all ranks: [3, n].

    A rank without columns comes with a largest logit of -inf and a sum of 0.
    """
    maximum_rn, sum_exp_rn, target_rn = statistics_r3n.unbind(1)
    maximum_n = maximum_rn.amax(0)
    sum_exp_n = (sum_exp_rn * (maximum_rn - maximum_n).exp()).sum(0)
    return torch.stack([maximum_n, maximum_n + sum_exp_n.log(), target_rn.sum(0)])


def multiply(
    left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor, add: bool = False
) -> None:
    """out = left @ right, or out += left @ right, rounded to the type of `out` and no narrower."""
    if out.dtype == left.dtype:
        torch.addmm(out, left, right, beta=int(add), out=out)
    elif left.is_cuda:
        torch.addmm(out, left, right, out_dtype=out.dtype, beta=int(add), out=out)
    else:  # torch widens a product's result on GPUs only
        torch.addmm(out, left.to(out.dtype), right.to(out.dtype), beta=int(add), out=out)
