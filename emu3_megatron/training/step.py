"""One optimizer step: micro-batches in, weights moved, the objective's sums out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from emu3_kernels.linear_cross_entropy import LinearCrossEntropy
from megatron.core.pipeline_parallel import get_forward_backward_func

from emu3_megatron.config import Recipe
from emu3_megatron.data.batches import Batch
from emu3_megatron.model import SequenceLayout, Targets
from emu3_megatron.parallel import Mesh
from emu3_megatron.parallel.dispatch import zigzag
from emu3_megatron.training.objective import Totals, global_weight
from emu3_megatron.training.optimizer import Trainable
from emu3_megatron.vocabulary import Vocabulary


@dataclass(frozen=True)
class StepResult:
    totals: Totals
    grad_norm: float
    lr: float


class TrainStep:
    """Runs Megatron's schedule over a step's micro-batches."""

    def __init__(self, recipe: Recipe, vocabulary: Vocabulary, mesh: Mesh, trainable: Trainable):
        self.mesh = mesh
        self.trainable = trainable
        self.vocabulary = vocabulary
        self.z_loss = recipe.z_loss
        self.seed = recipe.run.seed
        self.order_cs = zigzag(recipe.data.context, mesh.context_size)
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
        sums = self.run_schedule(
            forward_step_func=lambda iterator, model: self._forward(next(iterator), model, weight),
            data_iterator=iter(batches),
            model=[model],
            num_microbatches=len(batches),
            seq_length=batches[0].tokens.shape[1],
            micro_batch_size=batches[0].tokens.shape[0],
        )
        _, grad_norm, _ = optimizer.step()
        lr = optimizer.param_groups[0]["lr"]
        return StepResult(Totals.over_ranks(sums, self.mesh), float(grad_norm or 0.0), lr)

    def _forward(
        self, batch: Batch, model: torch.nn.Module, weight: torch.Tensor
    ) -> tuple[LinearCrossEntropy, Any]:
        inputs = self._place(batch)
        sums = model(**inputs)

        def loss_func(sums: LinearCrossEntropy) -> tuple[torch.Tensor, torch.Tensor, Any]:
            return sums.loss / weight, torch.tensor(1, dtype=torch.int), sums

        return sums, loss_func

    def _place(self, batch: Batch) -> dict[str, Any]:
        """This context parallel rank's tokens of the batch, on the device."""
        mine_s = self.order_cs[self.mesh.context_rank]
        take = lambda field_bs: field_bs[:, mine_s].to(self.mesh.device, non_blocking=True)
        labels_bs = take(batch.labels)
        return {
            "tokens_bs": take(batch.tokens),
            "positions_bs": take(batch.positions),
            "layout": self._layout(batch),
            "targets": Targets(
                labels_bs=labels_bs,
                weights_bs=take(batch.weights),
                classes_bs=self.vocabulary.token_class(labels_bs),
                z_loss=self.z_loss,
            ),
        }

    def _layout(self, batch: Batch) -> SequenceLayout:
        if self.mesh.context_size == 1:
            return SequenceLayout(boundaries=[bounds.tolist() for bounds in batch.boundaries])
        segments_bs = batch.segments.to(self.mesh.device, non_blocking=True)
        order_cs = self.order_cs.to(self.mesh.device)
        return SequenceLayout.for_context_rank(segments_bs, order_cs, self.mesh.context_rank)
