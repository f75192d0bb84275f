"""What the head's two computations return: the objective's sums, log-probabilities by token."""

from typing import NamedTuple

import torch


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


class TokenLogProbabilities(NamedTuple):
    """Values of each token, all of one shape; equal on all ranks that share the vocabulary.

    Attributes:
        log_prob: of each label, the one differentiable member; 0 where the label is IGNORE.
        correct: bool, whether the label has the largest logit; false where it is IGNORE.
        entropy: of the distribution over the whole vocabulary, in nats; 0 where it is IGNORE.
    """

    log_prob: torch.Tensor
    correct: torch.Tensor
    entropy: torch.Tensor
