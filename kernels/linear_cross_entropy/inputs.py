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


def check_settings(
    weight_vh: torch.Tensor,
    main_grad_vh: torch.Tensor | None,
    chunk_size: int | None,
    backend: str,
) -> None:
    """ValueError unless main gradient and chunk size are possible."""
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; at least one token is needed")
    if main_grad_vh is None:
        return
    if backend == "unfused":
        raise ValueError("backend unfused: autograd computes the gradient, not main_grad_vh")
    if main_grad_vh.shape != weight_vh.shape:
        raise ValueError(
            f"main_grad_vh is {list(main_grad_vh.shape)}, the weight {list(weight_vh.shape)}"
        )


def kept_tokens(labels_n: torch.Tensor, kept_k: torch.Tensor | None) -> torch.Tensor | None:
    """Which tokens have a label that is not IGNORE, as given or as found; None if all have."""
    if kept_k is None:
        kept_k = (labels_n != IGNORE).nonzero()[:, 0]
    if kept_k.dtype != torch.int64 or kept_k.ndim != 1 or len(kept_k) > len(labels_n):
        raise ValueError(
            f"kept_k is {kept_k.dtype} {list(kept_k.shape)}; needed: int64 [k], the indices of "
            f"the labels that are not IGNORE among {len(labels_n)}"
        )
    return None if len(kept_k) == len(labels_n) else kept_k


def take(values_n: torch.Tensor, kept_k: torch.Tensor | None) -> torch.Tensor:
    """The values of the kept tokens, without a copy where all are kept."""
    return values_n if kept_k is None else values_n.index_select(0, kept_k)


def in_vocabulary(labels_k: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Which labels are ids of the vocabulary."""
    return (labels_k >= 0) & (labels_k < vocab_size)
