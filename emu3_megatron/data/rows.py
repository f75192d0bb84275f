"""Makes the arrays of a batch from pieces of documents."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch

from emu3_megatron.context_parallel.dispatch import dispatch
from emu3_megatron.data.batches import IGNORE, Batch, DocumentRef
from emu3_megatron.data.groups import check_groups
from emu3_megatron.data.source import Piece
from emu3_megatron.errors import InputError
from emu3_megatron.vocabulary import CLASS_NAMES, Vocabulary


class RowBuilder:
    """Lays out rows of pieces as batches.

    Args:
        context: tokens a row.
        weights: of a label's loss by its class, 0 for a class that is not named. Labels in context
            spans always weigh nothing.
        reset_at_documents: attention and positions begin anew at each document; otherwise a row is
            as one document.
        context_size: context parallel ranks among which rows are shared out.
        columns: names of the columns that pieces carry; 0 in the padding.
        group: pieces come in groups of so many documents under one prompt, and a label of each
            weighs something.

    Raises:
        InputError: a weight is of a class that the vocabulary does not have.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        context: int,
        weights: Mapping[str, float],
        reset_at_documents: bool = True,
        context_size: int = 1,
        columns: Sequence[str] = (),
        group: int | None = None,
    ):
        self.vocabulary = vocabulary
        self.context = context
        self.reset_at_documents = reset_at_documents
        self.context_size = context_size
        self.columns, self.group = columns, group
        self._size = vocabulary.size
        self._indices = np.arange(context)
        if unknown := weights.keys() - set(CLASS_NAMES):
            raise InputError(
                f"weights: no class {min(unknown)!r}; choose one of {', '.join(CLASS_NAMES)}"
            )
        self._of_class = np.array([weights.get(name, 0.0) for name in CLASS_NAMES], np.float32)
        classes: np.ndarray = vocabulary.token_class(np.arange(vocabulary.size))
        self._weight_of_id = self._of_class[classes]

    def batch(self, rows: Sequence[Sequence[Piece]]) -> Batch:
        """Rows as a batch, in order.

        Raises:
            InputError: pieces longer than the context, an id outside the vocabulary, or a group
                that is none.
        """
        shape = (len(rows), self.context)
        tokens = np.full(shape, self.vocabulary.pad, np.int64)
        labels, positions = np.empty(shape, np.int64), np.empty(shape, np.int64)
        weights = np.empty(shape, np.float32)
        boundaries = [
            self._fill(pieces, tokens[row], labels[row], weights[row], positions[row])
            for row, pieces in enumerate(rows)
        ]
        order = [self._order(bounds) for bounds in boundaries]
        return Batch(
            tokens=torch.from_numpy(tokens),
            labels=torch.from_numpy(labels),
            weights=torch.from_numpy(weights),
            positions=torch.from_numpy(positions),
            boundaries=[torch.from_numpy(bounds) for bounds in boundaries],
            order=torch.from_numpy(np.array(order)),
            documents=[
                [DocumentRef(p.source, p.document, p.group, p.side) for p in pieces]
                for pieces in rows
            ],
            columns={name: torch.from_numpy(self._column(name, rows)) for name in self.columns},
        )

    def _order(self, boundaries: np.ndarray) -> np.ndarray:
        """Which of a row's tokens each rank holds; one rank holds all of them."""
        if self.context_size == 1:
            return self._indices[None]
        return dispatch(boundaries, self.context_size)

    def _column(self, name: str, rows: Sequence[Sequence[Piece]]) -> np.ndarray:
        values = np.zeros((len(rows), self.context), np.float32)
        for row, pieces in zip(values, rows, strict=True):
            joined = np.concatenate([piece.columns[name] for piece in pieces])
            row[: len(joined)] = joined
        return values

    def _fill(
        self,
        pieces: Sequence[Piece],
        tokens: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
        positions: np.ndarray,
    ) -> np.ndarray:
        """Fill the arrays of one row, [s] each. Returns its boundaries."""
        ends = list(accumulate(len(piece.tokens) for piece in pieces))
        if not ends or ends[-1] > self.context:
            raise InputError(
                f"a row of {ends[-1] if ends else 0:,} tokens, from "
                f"{pieces[0].source if ends else 'no document'}; a source's rows have 1 to "
                f"{self.context:,}"
            )
        np.concatenate([piece.tokens for piece in pieces], out=tokens[: ends[-1]])
        self._check_ids(pieces, tokens)
        labels[:-1] = tokens[1:]
        labels[-1] = self.vocabulary.pad
        # Labels are inside the vocabulary: checking again, as by default, would cost a copy.
        np.take(self._weight_of_id, labels, out=weights, mode="clip")
        lasts = np.array(ends) - 1
        for array, nothing in ((labels, IGNORE), (weights, 0)):
            array[lasts] = nothing
            array[ends[-1] :] = nothing  # padding
            for piece, end in zip(pieces, ends, strict=True):
                if piece.context is not None:
                    array[end - len(piece.tokens) : end - 1][piece.context[1:]] = nothing
        if self.group is not None:
            check_groups(pieces, self.group)
            self._check_weights(pieces, weights, ends)
        boundaries = self._boundaries(ends)
        sizes = boundaries[1:] - boundaries[:-1]
        np.subtract(self._indices, boundaries[:-1].repeat(sizes), out=positions)
        return boundaries

    def _check_weights(
        self, pieces: Sequence[Piece], weights: np.ndarray, ends: Sequence[int]
    ) -> None:
        """Refuse a document that the objective would learn nothing from."""
        for piece, total in zip(pieces, np.add.reduceat(weights, [0, *ends[:-1]]), strict=True):
            if not total:
                classes = ", ".join(CLASS_NAMES[i] for i in np.flatnonzero(self._of_class))
                raise InputError(
                    f"{piece.source}: document {piece.document} has no trained token of class "
                    f"{classes}, and the objective weighs no others; let it weigh them, or leave "
                    "the document out"
                )

    def _check_ids(self, pieces: Sequence[Piece], tokens: np.ndarray) -> None:
        # As unsigned numbers negative ids are large; argmax is numpy's quickest reduction.
        unsigned = tokens.view(np.uint64)
        if unsigned.item(unsigned.argmax()) < self._size:
            return
        for piece in pieces:
            inside = (piece.tokens >= 0) & (piece.tokens < self.vocabulary.size)
            if not inside.all():
                raise InputError(
                    f"{piece.source}: document {piece.document} holds id "
                    f"{piece.tokens[~inside][0]}, the vocabulary has {self.vocabulary.size:,}"
                )

    def _boundaries(self, ends: list[int]) -> np.ndarray:
        if not self.reset_at_documents:
            return np.array([0, self.context], np.int32)
        padding_end = [self.context] if ends[-1] < self.context else []
        return np.array([0, *ends, *padding_end], np.int32)
