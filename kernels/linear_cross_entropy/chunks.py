"""The head's work on a chunk of tokens at a time; logits are never kept.

Tokens whose label is IGNORE are left out: a chunk gathers the hidden states of the others, and
their gradients are scattered back. Where every token has a label nothing is copied.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from emu3_kernels.exchange import Exchange
from emu3_kernels.linear_cross_entropy.products import Head
from emu3_kernels.linear_cross_entropy.rows import Rows

# Bytes of logits at a time. On a GPU that is 5,760 tokens of 184,622 16-bit logits, so that Emu3's
# rows of 5,120 are one chunk: every chunk reads the weight and updates its gradient once, which
# costs 532 / tokens of the products' time (from bandwidth and rate of an H100 and 4,096 hidden
# units). A CPU's products need fewer tokens.
WORKSPACE_BYTES = {"cuda": 2 << 30, "cpu": 1 << 28}
MOST_TOKENS = 8192


@dataclass(frozen=True)
class Task:
    """What does not change from chunk to chunk; see `linear_cross_entropy` for the names.

    Attributes:
        labels_k: of the tokens that have one.
        kept_k: which tokens these are; None if all are.
    """

    labels_k: torch.Tensor
    kept_k: torch.Tensor | None
    vocab_size: int
    exchange: Exchange
    rows: Rows
    chunk_size: int | None


class Gradients(NamedTuple):
    """Which gradients to compute: by hidden states, by weight."""

    hidden: bool = False
    weight: bool = False


@dataclass(frozen=True)
class _Chunk:
    """Some of the tokens that have a label, and their logits over this rank's columns.

    Attributes:
        last: no chunk follows.
        logits_cv: without the columns of padding.
        by_logits_cw: the same memory with them, in the type of the logits' gradient.
    """

    tokens: slice
    last: bool
    hidden_ch: torch.Tensor
    logits_cv: torch.Tensor
    by_logits_cw: torch.Tensor

    @property
    def by_logits_cv(self) -> torch.Tensor:
        return self.by_logits_cw[:, : self.logits_cv.shape[1]]


class Chunks:
    """One run over all chunks: forward, backward, or both at once.

    Ranks that divide the tokens gather their hidden states while the weight is brought into the
    form that the products take, and sum the gradient by hidden states while the last chunk's
    gradient by the weight is computed.

    Args:
        hidden_nh: this rank's hidden states.
        weight_vh: this rank's rows, with those of padding.
        wanted: the gradients that the run computes.
        add_to_vh: the weight's gradient is added to this; of the type of the sums, fp32 or wider.

    Attributes:
        by_weight_vh: gradient by this rank's rows of the weight that are no padding.
    """

    def __init__(
        self,
        hidden_nh: torch.Tensor,
        weight_vh: torch.Tensor,
        task: Task,
        wanted: Gradients,
        add_to_vh: torch.Tensor | None = None,
    ):
        self.task = task
        self.wanted = wanted
        gathered = task.exchange.gather_tokens(hidden_nh)
        first_row = task.exchange.rank * weight_vh.shape[0]
        num_rows = min(max(task.vocab_size - first_row, 0), weight_vh.shape[0])
        self.wide = torch.promote_types(hidden_nh.dtype, torch.float32)
        weight_vh = weight_vh[:num_rows]
        self.head = Head(weight_vh, self.wide if task.rows.at_least_fp32 else hidden_nh.dtype)
        # Rows of logits start at multiples of 128 elements, so that every load of them is aligned.
        self.row_length = -(-num_rows // 128) * 128
        self.labels_k = task.labels_k - first_row
        self.by_weight_vh = self._gradient_by_weight(weight_vh, add_to_vh)
        self.adding = add_to_vh is not None
        self.hidden_nh = gathered()
        self._by_hidden_nh = self._gradient_by_hidden() if wanted.hidden else None
        self._summed: Callable[[], torch.Tensor] | None = None

    def by_hidden_nh(self) -> torch.Tensor | None:
        """The gradient by this rank's hidden states, from all ranks' columns; ranks wait here."""
        if self._by_hidden_nh is None:
            return None
        summed = self._summed or self.task.exchange.sum_tokens(self._by_hidden_nh)
        return summed()

    def _gradient_by_hidden(self) -> torch.Tensor:
        hidden_nh = self.hidden_nh
        make = hidden_nh.new_empty if self.task.kept_k is None else hidden_nh.new_zeros
        return make(hidden_nh.shape, dtype=self.wide)

    def _gradient_by_weight(
        self, weight_vh: torch.Tensor, add_to_vh: torch.Tensor | None
    ) -> torch.Tensor | None:
        if not self.wanted.weight:
            return None
        if add_to_vh is not None:
            return add_to_vh[: len(weight_vh)]
        make = weight_vh.new_empty if len(self.labels_k) else weight_vh.new_zeros
        return make(weight_vh.shape, dtype=self.wide)

    def loss(self, weights_k: torch.Tensor, z_loss: float) -> tuple[torch.Tensor, ...]:
        """Largest logit, log-sum-exp and target logit of each token, and the wanted gradients.

        They are those of sum(weight x (lse - target + z_loss x lse^2)).
        """
        if self.task.rows.whole and self.task.exchange.size == 1 and any(self.wanted):
            return self._loss_in_one_read(weights_k, z_loss)
        results_3k = self._results(3)
        for chunk, left_3c, results_3c in self._exchanged(self.task.rows.statistics):
            results_3k[:, chunk.tokens] = results_3c
            if any(self.wanted):
                weights_c = weights_k[chunk.tokens]
                self._differentiate(chunk, weights_c, left_3c, results_3c[1], z_loss)
        return results_3k.unbind()

    def _loss_in_one_read(self, weights_k: torch.Tensor, z_loss: float) -> tuple[torch.Tensor, ...]:
        assert self.task.rows.whole
        results_3k = self._results(3)
        for chunk in self._chunks():
            results_3k[:, chunk.tokens] = self.task.rows.whole(
                chunk.logits_cv,
                self.labels_k[chunk.tokens],
                weights_k[chunk.tokens],
                z_loss,
                chunk.by_logits_cv,
            )
            self._multiply(chunk)
        return results_3k.unbind()

    def statistics(self) -> tuple[torch.Tensor, ...]:
        """Largest logit, log-sum-exp, target logit and entropy of each token."""
        results_4k = self._results(4)
        for chunk, _, results_4c in self._exchanged(self.task.rows.statistics_with_entropy):
            results_4k[:, chunk.tokens] = results_4c
        return results_4k.unbind()

    def backward(self, weights_k: torch.Tensor, lse_k: torch.Tensor) -> None:
        """The gradients of sum(weight x (lse - target)), whose lse over all ranks is known."""
        for chunk in self._chunks():
            here = chunk.tokens
            self._differentiate(chunk, weights_k[here], None, lse_k[here], 0.0)

    def _results(self, count: int) -> torch.Tensor:
        return self.hidden_nh.new_empty(count, len(self.labels_k), dtype=self.wide)

    def _chunks(self, ahead: int = 0) -> Iterator[_Chunk]:
        """Each chunk with its logits, which last until `ahead` further chunks are asked for."""
        tokens = len(self.labels_k)
        # By the number of all tokens, so that it takes the same memory in every step.
        most = self._chunk_size(len(self.hidden_nh), self._limit())
        size = self._chunk_size(tokens, most)
        ahead = ahead if size < tokens else 0
        workspaces = [self._workspace(min(most, len(self.hidden_nh))) for _ in range(1 + ahead)]
        for start in range(0, tokens, size):
            here = slice(start, min(start + size, tokens))
            hidden_ch = self._hidden(here)
            logits_cw = workspaces[0][: len(hidden_ch)]
            self.head.logits(hidden_ch, out_cw=logits_cw)
            logits_cv = logits_cw[:, : self.head.columns]
            by_logits_cw = logits_cw.view(self.head.dtype)
            yield _Chunk(here, here.stop == tokens, hidden_ch, logits_cv, by_logits_cw)
            workspaces.reverse()

    def _limit(self) -> int:
        """Most tokens of a chunk."""
        if self.task.chunk_size is not None:
            return self.task.chunk_size
        row_bytes = self.row_length * self.head.logits_dtype.itemsize
        budget = WORKSPACE_BYTES["cuda" if self.hidden_nh.is_cuda else "cpu"]
        return min(MOST_TOKENS, max(128, budget // max(row_bytes, 1) // 128 * 128))

    @staticmethod
    def _chunk_size(tokens: int, limit: int) -> int:
        """Chunks as equal as multiples of 128 tokens can be, none over the limit."""
        count = max(1, -(-tokens // limit))
        even = -(-tokens // count)
        return max(1, min(limit, -(-even // 128) * 128))

    def _workspace(self, tokens: int) -> torch.Tensor:
        dtype = self.head.logits_dtype
        space = self.hidden_nh.new_empty(tokens, self.row_length, dtype=dtype)
        return space[:, : self.head.width]

    def _hidden(self, tokens: slice) -> torch.Tensor:
        """The hidden states of some of the tokens that have a label."""
        kept_k = self.task.kept_k
        hidden_ch = self.hidden_nh[tokens if kept_k is None else kept_k[tokens]]
        return hidden_ch.to(self.head.dtype)

    def _exchanged(
        self, statistics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> Iterator[tuple[_Chunk, torch.Tensor, torch.Tensor]]:
        """Each chunk with this rank's statistics and what `merge` makes of those of all ranks.

        While the ranks exchange one chunk's statistics, the next chunk's logits are computed.
        """
        begun: deque[tuple[_Chunk, torch.Tensor, Callable[[], torch.Tensor]]] = deque()
        ahead = 1 if self.task.exchange.size > 1 else 0
        for chunk in self._chunks(ahead):
            own = statistics(chunk.logits_cv, self.labels_k[chunk.tokens])
            begun.append((chunk, own, self.task.exchange.all_gather(own)))
            if len(begun) > ahead:
                first, own, gathered = begun.popleft()
                yield first, own, merge(gathered())
        for chunk, own, gathered in begun:
            yield chunk, own, merge(gathered())

    def _differentiate(
        self,
        chunk: _Chunk,
        weights_c: torch.Tensor,
        left_3c: torch.Tensor | None,
        lse_c: torch.Tensor,
        z_loss: float,
    ) -> None:
        """Turn logits into their gradient in place, then take the wanted products with it."""
        self.task.rows.gradient(
            chunk.logits_cv,
            self.labels_k[chunk.tokens],
            weights_c,
            left_3c,
            lse_c,
            z_loss,
            chunk.by_logits_cv,
        )
        self._multiply(chunk)

    def _multiply(self, chunk: _Chunk) -> None:
        """The gradients by hidden states and weight, from that by the logits."""
        if self._by_hidden_nh is not None:
            self._multiply_by_weight(chunk, self._by_hidden_nh)
            if chunk.last:
                self._summed = self.task.exchange.sum_tokens(self._by_hidden_nh)
        if self.by_weight_vh is not None:
            add = self.adding or chunk.tokens.start > 0
            self.head.by_weight(chunk.by_logits_cw, chunk.hidden_ch, self.by_weight_vh, add)

    def _multiply_by_weight(self, chunk: _Chunk, by_hidden_nh: torch.Tensor) -> None:
        kept_k = self.task.kept_k
        if kept_k is None:
            self.head.by_hidden(chunk.by_logits_cw, by_hidden_nh[chunk.tokens])
            return
        by_hidden_ch = by_hidden_nh.new_empty(chunk.hidden_ch.shape)
        self.head.by_hidden(chunk.by_logits_cw, by_hidden_ch)
        by_hidden_nh.index_copy_(0, kept_k[chunk.tokens], by_hidden_ch)


def merge(statistics_rsn: torch.Tensor) -> torch.Tensor:
    """Largest logit, log-sum-exp and target logit over the columns of all ranks: [3, n].

    A rank without columns comes with a largest logit of -inf and a sum of 0. Where statistics are
    with entropy, it comes as a fourth row.
    """
    maximum_rn, sum_exp_rn, target_rn, *moments = statistics_rsn.unbind(1)
    maximum_n = maximum_rn.amax(0)
    shift_rn = maximum_rn - maximum_n
    scale_rn = shift_rn.exp()
    sum_exp_n = (sum_exp_rn * scale_rn).sum(0)
    log_sum_n = sum_exp_n.log()
    results = [maximum_n, maximum_n + log_sum_n, target_rn.sum(0)]
    for moment_rn in moments:
        finite_rn = shift_rn.clamp(min=torch.finfo(shift_rn.dtype).min)  # 0 x -inf would be NaN
        moment_n = (scale_rn * (moment_rn + finite_rn * sum_exp_rn)).sum(0)
        results.append(log_sum_n - moment_n / sum_exp_n)
    return torch.stack(results)


def rounded(
    gradient: torch.Tensor,
    scale: torch.Tensor | float,
    dtype: torch.dtype,
    shape: torch.Size,
) -> torch.Tensor:
    """gradient x scale, rounded once; rows that the gradient lacks, those of padding, are zero."""
    result = gradient.new_empty(shape, dtype=dtype)
    torch.mul(gradient, scale, out=result[: len(gradient)])
    result[len(gradient) :].zero_()
    return result
