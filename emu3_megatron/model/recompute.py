"""Frees what a product was computed from until the backward pass needs it again."""

from collections.abc import Callable

import torch


def free_until_backward(
    tensor: torch.Tensor, fill: Callable[[torch.Tensor], None], used_by: torch.Tensor
) -> None:
    """Free the memory of a tensor that autograd keeps; its numbers return before they are used.

    Args:
        tensor: whole in its storage; nothing of the forward pass reads it any more.
        fill: writes the same numbers into the tensor that it is given.
        used_by: what was computed from the tensor. When its gradient comes, `fill` is called.
    """
    if not (torch.is_grad_enabled() and used_by.requires_grad):
        return
    storage = tensor.untyped_storage()
    size = storage.size()
    # With a version counter of its own: to autograd, which holds the tensor, nothing has changed.
    unwatched = tensor.data

    def refill(gradient: torch.Tensor) -> None:
        storage.resize_(size)
        fill(unwatched)

    used_by.register_hook(refill)
    storage.resize_(0)
