"""Sums over the samples of a step, added up over groups and ranks in one all-reduce."""

import torch
import torch.distributed as dist
from torch import Tensor

Sums = dict[str, Tensor]


class StepSums:
    """Named sums in fp64; every rank must add the same names with the same shapes.

    Args:
        shapes: of each sum. A rank that had no sample adds nothing, and still takes part.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], device: torch.device):
        self.values: Sums = {
            name: torch.zeros(shape, dtype=torch.float64, device=device)
            for name, shape in shapes.items()
        }

    def add(self, name: str, value: Tensor) -> None:
        self.values[name] += value.detach().double()

    def reduced(self) -> Sums:
        """The sums over all ranks. A collective."""
        flat = torch.cat([value.flatten() for value in self.values.values()])
        dist.all_reduce(flat)
        parts = flat.split([value.numel() for value in self.values.values()])
        return {
            name: part.view(value.shape)
            for (name, value), part in zip(self.values.items(), parts, strict=True)
        }
