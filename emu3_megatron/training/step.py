"""One optimizer step: micro-batches in, weights moved, the objective's sums out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from emu3_kernels.exchange import Exchange, GroupExchange, NoExchange
from emu3_kernels.linear_cross_entropy import LinearCrossEntropy
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from emu3_megatron.config import Recipe
from emu3_megatron.config.training import NextTokenConfig
from emu3_megatron.data.batches import Batch
from emu3_megatron.model import DropoutPlace, SequenceLayout, Targets
from emu3_megatron.parallel import Mesh
from emu3_megatron.runs.guard import Guard, Trouble
from emu3_megatron.runs.signals import StopRequest
from emu3_megatron.training.objective import Totals, global_weight
from emu3_megatron.training.optimizer import Trainable, gradient_norm, take_step
from emu3_megatron.vocabulary import Vocabulary


@dataclass(frozen=True)
class StepResult:
    totals: Totals
    grad_norm: float
    lr: float
    trouble: Trouble | None = None  # why the step was not taken
    leaves: bool = False  # a rank was told to leave


class TrainStep:
    """Runs Megatron's schedule over a step's micro-batches.

    Args:
        stop: asked in every step whether this rank was told to leave.
    """

    def __init__(
        self,
        recipe: Recipe,
        vocabulary: Vocabulary,
        mesh: Mesh,
        trainable: Trainable,
        stop: StopRequest | None = None,
    ):
        self.mesh = mesh
        self.trainable = trainable
        self.vocabulary = vocabulary
        assert isinstance(recipe.objective, NextTokenConfig)
        self.z_loss = recipe.objective.z_loss
        self.seed = recipe.run.seed
        self.guard = Guard(recipe.guard)
        self.stop = stop or StopRequest()
        self.exchange = _context_exchange(mesh)
        self.run_schedule = get_forward_backward_func()

    def __call__(self, number: int, batches: Sequence[Batch]) -> StepResult:
        """Step `number`, counted from 1, over this data parallel rank's micro-batches."""
        model, optimizer = self.trainable.model, self.trainable.optimizer
        self.mesh.seed(self.seed, number)
        model.train()
        model.zero_grad_buffer()
        optimizer.zero_grad()
        self.trainable.schedule.step(1)
        weight = global_weight(batches, self.mesh.device)
        sums = self._run(number, batches, weight)
        totals = Totals.over_ranks(sums, self.mesh)
        grad_norm = gradient_norm(optimizer)
        # Before the weights move: the GPU is waited for here anyway, and would idle later.
        bad, leaves = self.guard.judge(totals.loss, grad_norm, self.stop.was_told)
        if not bad:
            take_step(optimizer, grad_norm)
        trouble = Trouble(bad, totals.loss, grad_norm, _describe(batches, sums)) if bad else None
        return StepResult(totals, grad_norm, optimizer.param_groups[0]["lr"], trouble, leaves)

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> list[LinearCrossEntropy]:
        """The objective's sums of this rank's micro-batches: nothing moves, nothing is dropped."""
        self.trainable.model.eval()
        return self._run(0, batches, torch.ones((), device=self.mesh.device), forward_only=True)

    def _run(
        self,
        number: int,
        batches: Sequence[Batch],
        weight: torch.Tensor,
        forward_only: bool = False,
    ) -> list[LinearCrossEntropy]:
        places = self._dropout_places(number, batches)

        def forward_step(
            iterator: Iterator[tuple[Batch, DropoutPlace]], model: torch.nn.Module
        ) -> tuple[LinearCrossEntropy, Any]:
            batch, dropout = next(iterator)
            return self._forward(batch, dropout, model, weight)

        return self.run_schedule(
            forward_step_func=forward_step,
            data_iterator=zip(batches, places, strict=True),
            model=[self.trainable.model],
            num_microbatches=len(batches),
            seq_length=batches[0].tokens.shape[1],
            micro_batch_size=batches[0].tokens.shape[0],
            forward_only=forward_only,
        )

    def _forward(
        self, batch: Batch, dropout: DropoutPlace, model: torch.nn.Module, weight: torch.Tensor
    ) -> tuple[LinearCrossEntropy, Any]:
        inputs = self._place(batch, dropout)
        sums = model(**inputs)

        def loss_func(sums: LinearCrossEntropy) -> tuple[torch.Tensor, torch.Tensor, Any]:
            return sums.loss / weight, torch.tensor(1, dtype=torch.int), sums

        return sums, loss_func

    def _place(self, batch: Batch, dropout: DropoutPlace) -> dict[str, Any]:
        """This context parallel rank's tokens of the batch, on the device."""
        mine_bs = batch.order[:, self.mesh.context_rank]
        take = lambda field_bs: field_bs.gather(1, mine_bs).to(self.mesh.device, non_blocking=True)
        labels_bs = take(batch.labels)
        layout = SequenceLayout.of_documents(
            batch.boundaries, batch.order, self.exchange, dropout=dropout, device=self.mesh.device
        )
        return {
            "tokens_bs": take(batch.tokens),
            "positions_bs": take(batch.positions),
            "layout": layout,
            "targets": Targets(
                labels_bs=labels_bs,
                weights_bs=take(batch.weights),
                classes_bs=self.vocabulary.token_class(labels_bs),
                z_loss=self.z_loss,
            ),
        }

    def _dropout_places(self, number: int, batches: Sequence[Batch]) -> list[DropoutPlace]:
        """Where the micro-batches of a step lie in its global batch."""
        # The seed leaves room for the number of a layer, and for a million steps a run seed.
        seed = (self.seed << 32) + (number << 12)
        first = self.mesh.data_rank * len(batches)
        tokens = batches[0].tokens.numel()
        return [DropoutPlace(seed, (first + index) * tokens) for index in range(len(batches))]


def _context_exchange(mesh: Mesh) -> Exchange:
    if mesh.context_size == 1:
        return NoExchange()
    return GroupExchange(parallel_state.get_context_parallel_group(), point_to_point=True)


def _describe(batches: Sequence[Batch], sums: Sequence[LinearCrossEntropy]) -> list[dict[str, Any]]:
    """Of each micro-batch its loss here and its documents, for whoever looks into a bad step."""
    return [
        {"loss": str(float(part.loss / part.weight)), "documents": batch.documents}
        for batch, part in zip(batches, sums, strict=True)
    ]
