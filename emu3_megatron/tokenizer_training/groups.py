"""Gathers samples of one shape, as many at once as a budget of pixels allows."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from emu3_megatron.tokenizer_training.samples import Sample


@dataclass(frozen=True)
class Group:
    """Samples of one shape.

    Attributes:
        indices: of each sample among all samples of the run.
        pixels: [b, 3, h, w] of photos, [b, t, 3, h, w] of clips.
    """

    indices: list[int]
    pixels: Tensor

    @property
    def is_clip(self) -> bool:
        return self.pixels.ndim == 5

    def to(self, device: torch.device, dtype: torch.dtype) -> "Group":
        return Group(self.indices, self.pixels.to(device, dtype))


def groups_of(samples: Sequence[Sample], budget: int) -> Iterator[Group]:
    """Groups of the samples that can be used.

    Args:
        budget: pixels at once, frames counted; a sample above it is alone.
    """
    by_shape: dict[torch.Size, list[tuple[int, Tensor]]] = defaultdict(list)
    for sample in samples:
        if sample.pixels is not None:
            by_shape[sample.pixels.shape].append((sample.index, sample.pixels))
    for shape, found in by_shape.items():
        at_once = max(1, budget // (shape.numel() // 3))
        for first in range(0, len(found), at_once):
            indices, pixels = zip(*found[first : first + at_once], strict=True)
            yield Group(list(indices), torch.stack(pixels))
