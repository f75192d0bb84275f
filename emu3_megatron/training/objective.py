"""The objective over a global batch: sum of weighted losses over sum of weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from emu3_kernels.linear_cross_entropy import LinearCrossEntropy
from megatron.core import parallel_state

from emu3_megatron.data.batches import Batch
from emu3_megatron.parallel import Mesh
from emu3_megatron.vocabulary import CLASS_NAMES


def global_weight(batches: Sequence[Batch], device: torch.device) -> torch.Tensor:
    """Sum of the weights of a step's labels over all data parallel ranks and micro-batches.

    Known from the labels before the first forward, so that each micro-batch's loss is divided once
    and for all. At least a tiny positive number: a step whose labels all weigh nothing has loss 0.
    """
    total = sum((batch.weights.sum(dtype=torch.float64) for batch in batches), torch.zeros(()))
    total = total.float().to(device, non_blocking=True)
    dist.all_reduce(total, group=parallel_state.get_data_parallel_group())
    return total.clamp(min=torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class Totals:
    """The objective's sums over a whole step and all ranks."""

    loss: float
    nll: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]

    @classmethod
    def over_ranks(cls, parts: Sequence[LinearCrossEntropy], mesh: Mesh) -> "Totals":
        """Add up this rank's micro-batches and all ranks."""
        flat = torch.stack([torch.cat([t.detach().double().flatten() for t in p]) for p in parts])
        sums = mesh.sum_over_tokens(flat.sum(0)).cpu()
        classes = len(CLASS_NAMES)
        loss, weight = sums[:2].tolist()
        nll, count, correct = (part.tolist() for part in sums[2:].split(classes))
        mean = lambda values: tuple(
            v / n if n else float("nan") for v, n in zip(values, count, strict=True)
        )
        return cls(
            loss=loss / weight if weight else 0.0,
            nll=mean(nll),
            accuracy=mean(correct),
            count=tuple(int(n) for n in count),
        )

    def by_class(self) -> dict[str, float | int]:
        """NLL, accuracy and count of each class that occurred, by name."""
        rows: dict[str, float | int] = {}
        for i, name in enumerate(CLASS_NAMES):
            if self.count[i]:
                rows[f"nll_{name}"] = self.nll[i]
                rows[f"accuracy_{name}"] = self.accuracy[i]
            rows[f"tokens_{name}"] = self.count[i]
        return rows
