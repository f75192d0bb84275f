"""The output head and its loss in one call: vocabulary-parallel, weighted, measured by class."""

from typing import Literal, NamedTuple

import torch
from emu3_kernels.exchange import Exchange, NoExchange
from emu3_kernels.linear_cross_entropy.reference import reference_linear_cross_entropy

__all__ = ["IGNORE", "LinearCrossEntropy", "linear_cross_entropy"]

IGNORE = -100


class LinearCrossEntropy(NamedTuple):
    """Sums over the tokens of one call; equal on all ranks that share the vocabulary.

    Attributes:
        loss: sum of weight x (nll + z_loss x lse^2), the one differentiable member; scalar.
        weight: sum of the weights; scalar.
        nll: sum of the negative log-likelihoods of each class, unweighted; [classes].
        count: tokens of each class; [classes].
        correct: tokens of each class whose label has the largest logit; [classes].
    """

    loss: torch.Tensor
    weight: torch.Tensor
    nll: torch.Tensor
    count: torch.Tensor
    correct: torch.Tensor


def linear_cross_entropy(
    hidden_nh: torch.Tensor,
    weight_vh: torch.Tensor,
    labels_n: torch.Tensor,
    weights_n: torch.Tensor,
    classes_n: torch.Tensor,
    *,
    vocab_size: int,
    num_classes: int = 3,
    z_loss: float = 0.0,
    exchange: Exchange | None = None,
    backend: Literal["auto", "reference"] = "auto",
) -> LinearCrossEntropy:
    """Cross-entropy of `hidden @ weight.T` against labels, each token with its own weight.

    Args:
        hidden_nh: [n, h], the same on all ranks of the exchange; n may be 0.
        weight_vh: this rank's rows of the head, [v, h]. Ranks hold equal numbers of rows in order;
            rows at or past `vocab_size` are padding and never enter the softmax.
        labels_n: int64 [n], ids over the whole vocabulary; IGNORE leaves a token out of everything.
        weights_n: [n], of the loss. A weight of 0 leaves the token in the sums by class.
        classes_n: int64 [n], values below `num_classes`.
        vocab_size: ids of the whole vocabulary, without padding.
        z_loss: weight of the squared log-partition (PaLM, arXiv 2204.02311, section 5).
        exchange: the ranks that share the vocabulary; none by default.
        backend: "reference" is plain torch in the inputs' precision, at least fp32.

    Returns:
        Sums, fp32 or the inputs' wider type.
    """
    assert backend in ("auto", "reference"), backend
    sums = reference_linear_cross_entropy(
        hidden_nh,
        weight_vh,
        labels_n,
        weights_n,
        classes_n,
        vocab_size=vocab_size,
        num_classes=num_classes,
        z_loss=z_loss,
        exchange=exchange or NoExchange(),
        ignore=IGNORE,
    )
    return LinearCrossEntropy(*sums)
