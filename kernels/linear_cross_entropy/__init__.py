"""The output head and its loss in one call: vocabulary parallel, weighted, measured by class."""

import torch
from emu3_kernels.exchange import Exchange, NoExchange
from emu3_kernels.linear_cross_entropy.backends import BACKENDS, Backend, choose
from emu3_kernels.linear_cross_entropy.fused import Task, fused_linear_cross_entropy
from emu3_kernels.linear_cross_entropy.inputs import (
    IGNORE,
    check_head,
    check_tokens,
    kept_and_valid,
)
from emu3_kernels.linear_cross_entropy.results import LinearCrossEntropy, TokenLogProbabilities
from emu3_kernels.linear_cross_entropy.unfused import (
    unfused_linear_cross_entropy,
    unfused_log_probabilities,
)

__all__ = [
    "BACKENDS",
    "IGNORE",
    "Backend",
    "LinearCrossEntropy",
    "TokenLogProbabilities",
    "linear_cross_entropy",
    "unfused_log_probabilities",
]


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
    backend: Backend = "auto",
    main_grad_vh: torch.Tensor | None = None,
    chunk_size: int | None = None,
) -> LinearCrossEntropy:
    """Cross-entropy of `hidden @ weight.T` against labels, each token with its own weight.

    Where gradients are recorded they are computed with the loss, and `backward` scales them.

    Args:
        hidden_nh: [n, h], the same on all ranks of the exchange, or this rank's part where the
            exchange divides tokens; n may be 0. Its gradient comes summed over the ranks.
        weight_vh: this rank's rows of the head, [v, h]. Ranks hold equal numbers of rows in order;
            rows at or past `vocab_size` are padding and never enter the softmax.
        labels_n: int64 [n], all tokens, ids over the whole vocabulary; IGNORE leaves a token out of
            everything. Any other id outside the vocabulary makes the loss NaN.
        weights_n: [n], of the loss. A weight of 0 leaves the token in the sums by class.
        classes_n: int64 [n], values below `num_classes`.
        vocab_size: ids of the whole vocabulary, without padding.
        z_loss: weight of the squared log-partition (PaLM, arXiv 2204.02311, section 5).
        exchange: the ranks that share the vocabulary; none by default.
        backend: "reference" is plain torch; "triton" and "cuda" do the row passes between the
            matrix products on a GPU; "unfused" keeps all logits and leaves gradients to autograd.
            "auto" takes what fits the inputs.
        main_grad_vh: the weight's gradient is added to this, usually fp32, and not returned.
        chunk_size: most tokens whose logits exist at once; by default what fits the workspace.

    Returns:
        Sums, fp32 or the inputs' wider type.

    Raises:
        ValueError: shapes or types do not fit together, or the backend cannot take them.
    """
    exchange = exchange or NoExchange()
    check_tokens(hidden_nh, exchange, labels_n, weights_n, classes_n)
    check_head(hidden_nh, weight_vh, vocab_size, exchange)
    _check_settings(weight_vh, classes_n, main_grad_vh, chunk_size, backend)
    wide = torch.promote_types(hidden_nh.dtype, torch.float32)
    kept_n, valid_n = kept_and_valid(labels_n, vocab_size)
    weights_n = weights_n.to(wide).where(kept_n, 0.0).where(valid_n, torch.nan)

    if backend == "unfused":
        loss, maximum_n, lse_n, target_n = unfused_linear_cross_entropy(
            hidden_nh,
            weight_vh,
            labels_n,
            weights_n,
            vocab_size=vocab_size,
            z_loss=z_loss,
            exchange=exchange,
        )
    else:
        rows = choose(backend, hidden_nh)
        task = Task(labels_n, weights_n, vocab_size, z_loss, exchange, rows, chunk_size)
        loss, maximum_n, lse_n, target_n = fused_linear_cross_entropy(
            hidden_nh, weight_vh, task, main_grad_vh
        )

    class_cn = torch.nn.functional.one_hot(classes_n, num_classes).T * kept_n
    by_class = lambda values_n: (class_cn * values_n).sum(1, dtype=wide)
    correct_n = target_n >= maximum_n
    return LinearCrossEntropy(
        loss, weights_n.sum(), by_class(lse_n - target_n), by_class(kept_n), by_class(correct_n)
    )


def _check_settings(
    weight_vh: torch.Tensor,
    classes_n: torch.Tensor,
    main_grad_vh: torch.Tensor | None,
    chunk_size: int | None,
    backend: str,
) -> None:
    if classes_n.dtype != torch.int64:
        raise ValueError(f"classes are {classes_n.dtype}; needed: int64")
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
