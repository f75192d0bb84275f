"""Sums gradients over ranks, once a step."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

_BUCKET = 1 << 26  # elements


def sum_over_ranks(grads: Sequence[Tensor], samples: Tensor) -> None:
    """Sum in place over all ranks, and divide by the number of samples of the step.

    Ranks hold other shapes, and some hold no clip: no hook could wait for a gradient.
    """
    if dist.get_world_size() == 1:
        torch._foreach_div_(list(grads), samples.item())
        return
    bucket: list[Tensor] = []
    elements = 0
    for grad in grads:
        bucket.append(grad)
        elements += grad.numel()
        if elements >= _BUCKET:
            _sum_bucket(bucket, samples)
            bucket, elements = [], 0
    if bucket:
        _sum_bucket(bucket, samples)


def _sum_bucket(grads: Sequence[Tensor], samples: Tensor) -> None:
    flat = _flatten_dense_tensors(grads)
    dist.all_reduce(flat)
    flat /= samples.to(flat)
    torch._foreach_copy_(list(grads), _unflatten_dense_tensors(flat, grads))


def clip(grads: Sequence[Tensor], norm: float, largest: float) -> None:
    """Shorten gradients to the largest norm; 0 never does."""
    if largest and norm > largest:
        torch._foreach_mul_(list(grads), largest / norm)


def norm_of(grads: Sequence[Tensor]) -> float:
    return torch.nn.utils.get_total_norm(grads).item()
