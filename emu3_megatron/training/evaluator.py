"""Measures the objective on held-out data; needs no optimizer."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from emu3_megatron.data.batches import Batch
from emu3_megatron.data.setting import Reader
from emu3_megatron.training.interfaces import Sums
from emu3_megatron.training.sums import ObjectiveSums


class Measured(Protocol):
    """The data of an evaluation."""

    def batches(self, run: Reader) -> Iterator[list[Batch]]:
        """This data parallel rank's micro-batches, at least one."""
        ...


class HeldOutLoss:
    """The objective's metrics over the same sequences in every evaluation.

    Args:
        decoder: gives the decoder for the time of an evaluation.
    """

    def __init__(
        self,
        sums: ObjectiveSums,
        decoder: Callable[[], AbstractContextManager[Any]],
        data: Measured,
        run: Reader,
    ):
        self.sums, self.decoder, self.data, self.run = sums, decoder, data, run

    def measure(self, goes_on: Callable[[], bool]) -> dict[str, float] | None:
        """See `runs.interfaces.Evaluator`."""
        parts = []
        with self.decoder() as decoder:
            for batches in self.data.batches(self.run):
                if not goes_on():
                    return None
                parts += [self._sums(decoder, batch) for batch in batches]
        return self.sums.objective.metrics(self.sums.sum(parts))

    def _sums(self, decoder: Any, batch: Batch) -> Sums:
        undivided = torch.ones_like(self.sums.objective.counts(batch))
        return self.sums.forward(decoder, batch, undivided.to(self.sums.mesh.device))[1]
