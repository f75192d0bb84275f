"""What a backend computes on a chunk of logits, between the two matrix products."""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rows:
    """Two passes over logits [n, v], or one where a single rank holds the whole vocabulary.

    Rows of logits may lie further apart than v. Labels are int64 columns; one outside [0, v)
    belongs to another rank. Everything else is fp32, fp64 for logits of fp64. The gradient is
    written in place of the logits, into `out`: the same memory, of another 16-bit type where the
    products take one.

    Attributes:
        statistics: of (logits, labels) to [3, n]: largest logit, sum of exp(logit - largest),
            target logit (0 where the label is elsewhere). May leave in place of the logits what
            `gradient` needs.
        statistics_with_entropy: the same and sum of exp(logit - largest) x (logit - largest), to
            [4, n]. What it leaves in place of the logits is of no use.
        gradient: of (logits, labels, weights, statistics, lse, z_loss, out); out becomes weight x
            ((1 + 2 z_loss lse) softmax - onehot), where lse is that of all ranks. Weights may be
            negative. Statistics are None where `statistics` did not see the logits.
        whole: both at once where there is no other rank: of (logits, labels, weights, z_loss, out)
            to [3, n]: largest logit, log-sum-exp, target logit.
        at_least_fp32: the products are taken in fp32 when the inputs are narrower.
    """

    statistics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    statistics_with_entropy: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    gradient: Callable[
        [
            torch.Tensor,
            torch.Tensor,
            torch.Tensor,
            torch.Tensor | None,
            torch.Tensor,
            float,
            torch.Tensor,
        ],
        None,
    ]
    whole: (
        Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float, torch.Tensor], torch.Tensor]
        | None
    ) = None
    at_least_fp32: bool = False
