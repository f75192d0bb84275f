"""How many codes are used, and how evenly: over a stated set of codes, not since some moment."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Usage:
    """Use of a codebook by a number of tokens; with few tokens both must be low.

    Attributes:
        tokens: how many codes were counted.
        used: different ones among them.
        share: of the codebook that is used.
        perplexity: exp of the entropy: so many codes, all equally frequent, would vary as much.
    """

    tokens: int
    used: int
    share: float
    perplexity: float


def counts_of(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each code occurs, int64 [codebook_size]; counts of several sets can be added."""
    return codes.flatten().bincount(minlength=codebook_size)


def usage_of(counts_k: Tensor) -> Usage:
    """Usage by counts of each code."""
    tokens, used = int(counts_k.sum()), int((counts_k > 0).sum())
    shares = counts_k[counts_k > 0].double() / max(1, tokens)
    perplexity = torch.exp(-(shares * shares.log()).sum()).item() if tokens else 0.0
    return Usage(tokens, used, used / len(counts_k), perplexity)
