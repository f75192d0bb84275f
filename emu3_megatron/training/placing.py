"""Cuts one rank's part out of whole rows, in the data workers."""

from dataclasses import dataclass, replace

import torch

from emu3_megatron.data.batches import IGNORE, Batch
from emu3_megatron.model import Inputs, SequenceLayout
from emu3_megatron.vocabulary import Vocabulary


@dataclass(frozen=True)
class Placer:
    """Gives a batch the `inputs` of one context parallel rank, on the CPU."""

    vocabulary: Vocabulary
    context_rank: int

    def __call__(self, batch: Batch) -> Batch:
        mine_bs = batch.order[:, self.context_rank]
        take = lambda field_bs: field_bs.gather(1, mine_bs)
        labels_bs = take(batch.labels)
        starts = tuple(
            torch.searchsorted(row, bounds.to(row.dtype))
            for row, bounds in zip(mine_bs, batch.boundaries, strict=True)
        )
        inputs = Inputs(
            tokens_bs=take(batch.tokens),
            positions_bs=take(batch.positions),
            layout=SequenceLayout.of_documents(batch.boundaries, batch.order, self.context_rank),
            labels_bs=labels_bs,
            weights_bs=take(batch.weights),
            classes_bs=self.vocabulary.token_class(labels_bs),
            starts=starts,
            kept=(labels_bs.T.flatten() != IGNORE).nonzero()[:, 0],
            columns={name: take(column) for name, column in batch.columns.items()},
        )
        return replace(batch, inputs=inputs)
