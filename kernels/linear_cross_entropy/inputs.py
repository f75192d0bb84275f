"""Checks of what the head and its loss are called with."""

import torch
from emu3_kernels.exchange import Exchange

IGNORE = -100  # a label that leaves its token out of everything


def check_tokens(
    hidden_nh: torch.Tensor, exchange: Exchange, labels_n: torch.Tensor, *others_n: torch.Tensor
) -> None:
    """ValueError unless labels, and whatever else there is of each token, fit the hidden states."""
    tokens = labels_n.shape[0]
    if {tensor.shape for tensor in (labels_n, *others_n)} != {(tokens,)}:
        raise ValueError("labels, weights and classes must be [n], all of one length")
    if labels_n.dtype != torch.int64:
        raise ValueError(f"labels are {labels_n.dtype}; needed: int64")
    if hidden_nh.shape[0] * (exchange.size if exchange.tokens_divided else 1) != tokens:
        raise ValueError(f"{hidden_nh.shape[0]} hidden states do not fit {tokens} labels")


def check_head(
    hidden_nh: torch.Tensor, weight_vh: torch.Tensor, vocab_size: int, exchange: Exchange
) -> None:
    """ValueError unless the weight fits the hidden states and the vocabulary."""
    if hidden_nh.dtype != weight_vh.dtype or hidden_nh.shape[1:] != weight_vh.shape[1:]:
        raise ValueError(
            f"hidden states are {hidden_nh.dtype} {list(hidden_nh.shape)}, the head's weight "
            f"{weight_vh.dtype} {list(weight_vh.shape)}: types and second sizes must be equal"
        )
    rows = exchange.size * weight_vh.shape[0]
    if rows < vocab_size:
        raise ValueError(f"{rows} rows over all ranks do not fit a vocabulary of {vocab_size}")


def kept_and_valid(labels_n: torch.Tensor, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which labels are not IGNORE, and which are either IGNORE or an id of the vocabulary."""
    kept_n = labels_n != IGNORE
    return kept_n, ~kept_n | ((labels_n >= 0) & (labels_n < vocab_size))
