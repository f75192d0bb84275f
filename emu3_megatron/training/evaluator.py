"""Measures the objective on held-out data; needs no optimizer."""

from collections.abc import Callable
from typing import Any

import torch

from emu3_megatron.data.batches import Batch
from emu3_megatron.data.held_out import HeldOut
from emu3_megatron.runs.interfaces import Run
from emu3_megatron.training.interfaces import Sums
from emu3_megatron.training.trainer import DecoderTrainer


class HeldOutLoss:
    """The objective's metrics over the same sequences in every evaluation."""

    def __init__(self, trainer: DecoderTrainer, data: HeldOut, run: Run):
        self.trainer, self.data, self.run = trainer, data, run

    def measure(self, goes_on: Callable[[], bool]) -> dict[str, float] | None:
        """See `runs.interfaces.Evaluator`."""
        parts = []
        with self.trainer.engine.decoder() as decoder:
            for batches in self.data.batches(self.run):
                if not goes_on():
                    return None
                parts += [self._sums(decoder, batch) for batch in batches]
        return self.trainer.objective.metrics(self.trainer.sum(parts))

    def _sums(self, decoder: Any, batch: Batch) -> Sums:
        undivided = torch.ones_like(self.trainer.objective.counts(batch))
        return self.trainer.forward(decoder, batch, undivided.to(self.trainer.mesh.device))[1]
