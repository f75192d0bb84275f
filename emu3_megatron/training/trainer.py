"""Takes one optimizer step of a decoder: micro-batches in, weights moved, metrics out.

The trainer owns the collectives of a step: one sum of the objective's counts over data parallel
ranks, one fp64 sum of its sums over data x context, and the judge's vote.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from emu3_kernels.movable import to_device
from torch import Tensor

from emu3_megatron.checkpoints.state import Saved, State
from emu3_megatron.data.batches import Batch
from emu3_megatron.model import DropoutPlace
from emu3_megatron.parallel import Mesh
from emu3_megatron.parallel.groups import data_group
from emu3_megatron.runs.interfaces import Judge, StepResult
from emu3_megatron.runs.metrics.log import Work
from emu3_megatron.training.interfaces import Engine, Objective, Sums
from emu3_megatron.training.placing import Placer
from emu3_megatron.training.sums import ObjectiveSums


class DecoderTrainer(ObjectiveSums):
    """Trains a decoder by an objective on an engine.

    Args:
        rate: the learning rate of each step.
        seed: of dropout.
        work: what each step comes to.
    """

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        *,
        rate: Callable[[int], float],
        mesh: Mesh,
        place: Placer,
        seed: int,
        work: Callable[[int], Work],
    ):
        super().__init__(objective, mesh, place)
        self.engine, self.rate = engine, rate
        self.seed, self.work = seed, work

    def step(self, number: int, batches: Sequence[Batch], judge: Judge) -> StepResult:
        """See `runs.interfaces.Trainer`."""
        self.mesh.seed(self.seed, number)
        batches = self._at(number, batches)
        denominators = self._denominators(batches)
        parts = self.engine.forward_backward(
            batches, lambda decoder, batch: self.forward(decoder, batch, denominators)
        )
        metrics = self.objective.metrics(self.sum(parts))
        grad_norm = self.engine.grad_norm()
        # Before the weights move: the GPU is waited for here anyway, and would idle later.
        verdict = judge({"loss": metrics["loss"], "grad_norm": grad_norm})
        lr = self.rate(number)
        if not verdict.trouble:
            self.engine.update(grad_norm, lr)
        metrics |= {"grad_norm": grad_norm, "lr": lr}
        details = self._describe(batches, parts) if verdict.trouble else []
        return StepResult(metrics, verdict, self.work(number), details)

    def _denominators(self, batches: Sequence[Batch]) -> Tensor:
        """The objective's counts over the global batch, known before the first forward."""
        counts = torch.stack([self.objective.counts(batch) for batch in batches]).sum(0)
        (counts,) = to_device([counts], self.mesh.device)
        dist.all_reduce(counts, group=data_group())
        return counts

    def _at(self, number: int, batches: Sequence[Batch]) -> list[Batch]:
        """Batches that know their place in the step, on which attention dropout depends."""
        # The low bits are left for the number of a layer, the next ones for a million steps a seed.
        seed = (self.seed << 32) + (number << 12)
        first = self.mesh.data_rank * len(batches)
        placed = [batch if batch.inputs else self.place(batch) for batch in batches]
        return [
            _with_dropout(batch, DropoutPlace(seed, (first + index) * batch.tokens.numel()))
            for index, batch in enumerate(placed)
        ]

    def _describe(self, batches: Sequence[Batch], parts: Sequence[Sums]) -> list[dict[str, Any]]:
        """Of each micro-batch its loss here and its documents."""
        return [
            {
                "loss": str(self.objective.metrics(part)["loss"]),
                "documents": [[list(ref[:2]) for ref in row] for row in batch.documents],
            }
            for batch, part in zip(batches, parts, strict=True)
        ]

    def state_dict(self, saved: Saved | None = None) -> State:
        return self.engine.state_dict(saved)

    def load_state_dict(self, state: State) -> None:
        self.engine.load_state_dict(state)


def _with_dropout(batch: Batch, place: DropoutPlace) -> Batch:
    layout = replace(batch.inputs.layout, dropout=place)
    return replace(batch, inputs=replace(batch.inputs, layout=layout))
