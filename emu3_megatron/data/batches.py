"""Batches: whole rows of packed documents, with the weight of each label."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

IGNORE = -100  # torch's own ignore_index


class DocumentRef(NamedTuple):
    """A document, or a piece of one, in a row.

    Attributes:
        source: name of the shard.
        document: number inside the shard.
        group: of documents that belong together, which group of the shard.
        side: which document of its group: of a pair 0 the chosen one, 1 the rejected.
    """

    source: str
    document: int
    group: int | None = None
    side: int | None = None


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents.

    Attributes:
        tokens: int64 [b, s]; `pad` behind the last document.
        labels: the next token of the same piece, int64 [b, s]; IGNORE where there is none, and
            where it is context, which is neither trained nor measured.
        weights: of each label's loss, float32 [b, s].
        positions: int64 [b, s], from 0 in each document, and in the padding.
        boundaries: per row, where documents begin, then the padding if there is any, and the end,
            int32 [documents + 1 or 2].
        order: which tokens of its row each context parallel rank holds, ascending in each,
            int64 [b, ranks, s / ranks].
        documents: per row its documents, in order.
        columns: further numbers of each token by name, float32 [b, s]: reference
            log-probabilities, advantages.
        inputs: what the trainer's `place` made of the batch in the data worker; None without it.
    """

    tokens: Tensor
    labels: Tensor
    weights: Tensor
    positions: Tensor
    boundaries: list[Tensor]
    order: Tensor
    documents: list[list[DocumentRef]]
    columns: dict[str, Tensor] = field(default_factory=dict)
    inputs: Any = None

    def pin_memory(self) -> "Batch":
        """The batch in pinned memory, `inputs` too if they have a method of this name."""
        pin: Callable[[Any], Any] = lambda value: value.pin_memory()
        return replace(
            self,
            tokens=pin(self.tokens),
            labels=pin(self.labels),
            weights=pin(self.weights),
            positions=pin(self.positions),
            boundaries=[pin(tensor) for tensor in self.boundaries],
            order=pin(self.order),
            columns={name: pin(tensor) for name, tensor in self.columns.items()},
            inputs=pin(self.inputs) if hasattr(self.inputs, "pin_memory") else self.inputs,
        )
