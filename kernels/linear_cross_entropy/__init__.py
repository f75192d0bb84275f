"""The output head with its loss, or with log-probabilities, in one call: vocabulary parallel."""

import torch
from emu3_kernels.exchange import Exchange, NoExchange
from emu3_kernels.linear_cross_entropy.backends import BACKENDS, Backend, choose
from emu3_kernels.linear_cross_entropy.chunks import Task
from emu3_kernels.linear_cross_entropy.fused import fused_linear_cross_entropy
from emu3_kernels.linear_cross_entropy.inputs import (
    IGNORE,
    check_head,
    check_settings,
    check_tokens,
    in_vocabulary,
    kept_tokens,
    take,
)
from emu3_kernels.linear_cross_entropy.log_probabilities import token_log_probabilities
from emu3_kernels.linear_cross_entropy.results import LinearCrossEntropy, TokenLogProbabilities
from emu3_kernels.linear_cross_entropy.unfused import unfused_linear_cross_entropy

__all__ = [
    "BACKENDS",
    "IGNORE",
    "Backend",
    "LinearCrossEntropy",
    "TokenLogProbabilities",
    "linear_cross_entropy",
    "token_log_probabilities",
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
    known_scale: torch.Tensor | None = None,
    chunk_size: int | None = None,
    kept_k: torch.Tensor | None = None,
) -> LinearCrossEntropy:
    """Cross-entropy of `hidden @ weight.T` against labels, each token with its own weight.

    Where gradients are recorded they are computed with the loss, and `backward` scales them.
    With `main_grad_vh` and `known_scale`, forward adds the weight's gradient: a forward whose
    backward never comes leaves it there.

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
        known_scale: the gradient of the loss that `backward` will come with, a scalar. If another
            one comes, the gradient by hidden states is NaN.
        chunk_size: most tokens whose logits exist at once; by default what fits the workspace.
        kept_k: int64 [k], ascending, exactly the tokens whose label is not IGNORE. Without it they
            are found on the device, for which the host waits.

    Returns:
        Sums, fp32 or the inputs' wider type.

    Raises:
        ValueError: shapes or types do not fit together, or the backend cannot take them.
    """
    exchange = exchange or NoExchange()
    check_tokens(hidden_nh, exchange, labels_n, weights_n, classes_n)
    check_head(hidden_nh, weight_vh, vocab_size, exchange)
    check_settings(weight_vh, main_grad_vh, chunk_size, backend)
    if classes_n.dtype != torch.int64:
        raise ValueError(f"classes are {classes_n.dtype}; needed: int64")
    wide = torch.promote_types(hidden_nh.dtype, torch.float32)
    kept_k = kept_tokens(labels_n, kept_k)
    labels_k, weights_k, classes_k = (take(t, kept_k) for t in (labels_n, weights_n, classes_n))
    weights_k = weights_k.to(wide).where(in_vocabulary(labels_k, vocab_size), torch.nan)

    if backend == "unfused":
        loss, maximum_k, lse_k, target_k = unfused_linear_cross_entropy(
            hidden_nh,
            weight_vh,
            labels_k,
            weights_k,
            kept_k,
            vocab_size=vocab_size,
            z_loss=z_loss,
            exchange=exchange,
        )
    else:
        rows = choose(backend, hidden_nh, weight_vh, exchange.size)
        task = Task(labels_k, kept_k, vocab_size, exchange, rows, chunk_size)
        loss, maximum_k, lse_k, target_k = fused_linear_cross_entropy(
            hidden_nh,
            weight_vh,
            weights_k,
            task,
            z_loss=z_loss,
            main_grad_vh=main_grad_vh,
            known_scale=known_scale,
        )

    class_ck = torch.nn.functional.one_hot(classes_k, num_classes).T
    by_class = lambda values_k: (class_ck * values_k).sum(1, dtype=wide)
    nll_k, correct_k = lse_k - target_k, target_k >= maximum_k
    return LinearCrossEntropy(
        loss,
        weights_k.sum(),
        by_class(nll_k),
        class_ck.sum(1, dtype=wide),
        by_class(correct_k),
    )
