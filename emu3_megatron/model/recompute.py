"""Frees what a product was computed from until the backward pass needs it again."""

from collections.abc import Callable

import torch


def free_until_backward(
    tensor: torch.Tensor, again: Callable[[], torch.Tensor], used_by: torch.Tensor
) -> None:
    """Free the memory of a tensor that autograd keeps; its numbers return before they are used.

    Args:
        tensor: whole in its storage; nothing of the forward pass reads it any more.
        again: computes the same numbers, without recording.
        used_by: what was computed from the tensor. When its gradient comes, the tensor is filled.
    """
    if not (torch.is_grad_enabled() and used_by.requires_grad):
        return
    storage = tensor.untyped_storage()
    size = storage.size()

    def fill(gradient: torch.Tensor) -> None:
        with torch.no_grad():
            fresh = again().untyped_storage()
        storage.resize_(size)
        storage.copy_(fresh)

    used_by.register_hook(fill)
    storage.resize_(0)
