"""The next-token loss of a decoder over every row of held-out packs, in any layout."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from emu3_megatron.data.batches import Batch
from emu3_megatron.data.rows import RowBuilder
from emu3_megatron.data.setting import Reader
from emu3_megatron.data.source import Source
from emu3_megatron.errors import InputError
from emu3_megatron.model import Decoder
from emu3_megatron.parallel import Mesh
from emu3_megatron.training.evaluator import HeldOutLoss
from emu3_megatron.training.interfaces import Objective
from emu3_megatron.training.placing import Placer
from emu3_megatron.training.sums import ObjectiveSums
from emu3_megatron.vocabulary import Vocabulary


class WholeSources:
    """Every row of some sources once; data parallel ranks take turns.

    Args:
        at_once: rows that a rank computes together.
        reset_at_documents: as the decoder was trained.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        vocabulary: Vocabulary,
        objective: Objective,
        at_once: int,
        reset_at_documents: bool = True,
    ):
        self.sources, self.vocabulary, self.objective = sources, vocabulary, objective
        self.at_once, self.reset_at_documents = at_once, reset_at_documents

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def batches(self, run: Reader) -> Iterator[list[Batch]]:
        """See `training.evaluator.Measured`.

        Raises:
            InputError: there are fewer rows than data parallel ranks.
        """
        mesh = run.mesh
        if len(self) < mesh.data_size:
            raise InputError(
                f"{self.sources[0]}: {len(self)} rows for {mesh.data_size} data parallel ranks; "
                "start fewer processes"
            )
        builder = RowBuilder(
            self.vocabulary,
            self.sources[0].context,
            self.objective.weights,
            self.reset_at_documents,
            mesh.context_size,
        )
        rows = [(source, i) for source in self.sources for i in range(len(source))]
        own = rows[mesh.data_rank :: mesh.data_size]
        hidden = None if mesh.is_first else True
        with tqdm(total=len(own), unit="row", disable=hidden) as bar:
            for first in range(0, len(own), self.at_once):
                some = own[first : first + self.at_once]
                yield [builder.batch([source.row(i) for source, i in some])]
                bar.update(len(some))


@dataclass(frozen=True)
class _Reader:
    mesh: Mesh
    trainer: Any


def held_out_loss(
    decoder: Decoder,
    objective: Objective,
    data: WholeSources,
    mesh: Mesh,
) -> dict[str, float]:
    """Loss, and NLL, accuracy and count of each class of tokens; a call on every rank.

    It is what training logs as `validation/...` of the same rows.
    """
    sums = ObjectiveSums(objective, mesh, Placer(data.vocabulary, mesh.context_rank))

    @contextmanager
    def opened() -> Iterator[Decoder]:
        with torch.no_grad():
            yield decoder

    evaluator = HeldOutLoss(sums, opened, data, _Reader(mesh, sums))
    measured = evaluator.measure(lambda: True)
    assert measured is not None
    return measured
