"""A hook that compares the copies of weights that ranks hold, bit for bit.

All data and context parallel ranks hold the same weights, tensor parallel ranks those that are not
divided among them.
Nothing in training compares them: a copy that drifts trains on, and only the loss tells, late.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist

from emu3_megatron.config.runs import GuardConfig
from emu3_megatron.errors import DIVERGED, RunEnded
from emu3_megatron.parallel.groups import tensor_group, tensor_rank, token_group
from emu3_megatron.runs.interfaces import Hook, Run, StepResult

_CHUNK = 1 << 24  # elements hashed at once

Named = tuple[str, torch.Tensor]


class CompareReplicas(Hook):
    """Ends a run whose ranks no longer hold the same copies.

    Args:
        weights: opens the live weights by name.
    """

    name = "comparing replicas"
    order = 20  # before any save: damaged weights must not become the newest checkpoint

    def __init__(
        self,
        config: GuardConfig,
        weights: Callable[[], AbstractContextManager[Iterable[Named]]],
    ):
        self.config, self.weights = config, weights

    def after_step(self, run: Run, step: int, result: StepResult, is_last: bool) -> None:
        if step % self.config.replicas_every and not is_last:
            return
        with self.weights() as named:
            words = drifted(named)
        if words:
            run.events.add("replicas differ", step, why=words)
            raise RunEnded(
                f"step {step}: {words}; the last checkpoint may hold the damage if it is younger "
                f"than {self.config.replicas_every} steps",
                DIVERGED,
            )


def drifted(named: Iterable[Named]) -> str | None:
    """The first tensor that is not bit for bit the same on all ranks that should share it.

    A call on every rank alike.

    Returns:
        Its name and the ranks with their hashes, the same words on all ranks; or None.
    """
    tensors = list(named)
    hashes_p = torch.stack([_hash(tensor.detach()) for _, tensor in tensors])
    whole_p = torch.tensor(
        [not getattr(tensor, "tensor_model_parallel", False) for _, tensor in tensors],
        device=hashes_p.device,
    )
    differs_p = _differs(hashes_p, token_group())
    differs_p |= _differs(hashes_p, tensor_group()) & whole_p
    votes_p = differs_p.to(torch.int32)
    dist.all_reduce(votes_p, op=dist.ReduceOp.MAX)
    if not votes_p.any():
        return None
    return _describe(tensors, hashes_p, whole_p, int(votes_p.argmax()))


def _hash(tensor: torch.Tensor) -> torch.Tensor:
    """A sum of the bits, each weighted by its place, modulo 2^64; int64 []."""
    size = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for number, bits in enumerate(tensor.reshape(-1).view(size).split(_CHUNK)):
        places = torch.arange(len(bits), device=tensor.device) + number * _CHUNK
        # Odd factors: no place loses a bit to the modulus.
        total += (bits.to(torch.int64) * (places * 0x9E3779B97F4A7C1 | 1)).sum()
    return total


def _differs(hashes_p: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    least_p, most_p = hashes_p.clone(), hashes_p.clone()
    dist.all_reduce(least_p, op=dist.ReduceOp.MIN, group=group)
    dist.all_reduce(most_p, op=dist.ReduceOp.MAX, group=group)
    return least_p != most_p


def _describe(
    tensors: Sequence[Named],
    hashes_p: torch.Tensor,
    whole_p: torch.Tensor,
    index: int,
) -> str:
    mine = (0 if whole_p[index] else tensor_rank(), int(hashes_p[index]))
    given: list[tuple[int, int]] = [(0, 0)] * dist.get_world_size()
    dist.all_gather_object(given, mine)
    ranks: dict[tuple[int, int], list[int]] = {}
    for rank, key in enumerate(given):
        ranks.setdefault(key, []).append(rank)
    copies = "; ".join(
        f"{value & (1 << 64) - 1:016x} on ranks {', '.join(map(str, having))}"
        for (_, value), having in sorted(ranks.items(), key=lambda item: -len(item[1]))
    )
    return f"{tensors[index][0]} is not the same on all ranks: {copies}"
