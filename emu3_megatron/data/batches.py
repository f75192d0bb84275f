"""From packs to batches: tokens, labels and the weight of each label."""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from emu3_megatron.context_parallel.dispatch import dispatch
from emu3_megatron.data.mixture import Mixture
from emu3_megatron.data.packing.pack_set import Piece
from emu3_megatron.data.phases import PhasedMixture
from emu3_megatron.data.shards.store import CONTEXT
from emu3_megatron.errors import InputError
from emu3_megatron.vocabulary import Vocabulary

T = TypeVar("T")

IGNORE = -100  # torch's own ignore_index


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents.

    Attributes:
        tokens: int64 [b, s]; `pad` behind the last document.
        labels: the next token of the same piece, int64 [b, s]; IGNORE where there is none, and
            where it is context, which is neither trained nor measured.
        weights: of each label's loss, float32 [b, s].
        positions: int64 [b, s], from 0 in each segment.
        segments: int32 [b, s], counted from 0 in each row: the documents, then the padding.
        boundaries: per row, where segments begin and the row ends, int32 [segments + 1].
        order: which tokens of its row each context parallel rank holds, ascending in each,
            int64 [b, ranks, s / ranks].
        documents: per row, prefix of the shard and number of each document, in order.
    """

    tokens: Tensor
    labels: Tensor
    weights: Tensor
    positions: Tensor
    segments: Tensor
    boundaries: list[Tensor]
    order: Tensor
    documents: list[list[tuple[str, int]]]
    columns: dict[str, Tensor] = field(default_factory=dict)
    inputs: Any = None

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; copies from pinned memory do not block."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(
            tokens=function(self.tokens),
            labels=function(self.labels),
            weights=function(self.weights),
            positions=function(self.positions),
            segments=function(self.segments),
            boundaries=[function(tensor) for tensor in self.boundaries],
            order=function(self.order),
            documents=self.documents,
            columns={name: function(column) for name, column in self.columns.items()},
            inputs=self.inputs and self.inputs.pin_memory(),
        )


class PackedSamples(Dataset[Batch]):
    """Samples of a run as rows, by their number in the run.

    Args:
        mixture: which pack each sample is.
        vocabulary: the one of its shards.
        weights: of a label's loss by its class TEXT, STRUCTURE, CODE. Labels in context spans
            always weigh nothing.
        reset_at_documents: each document is a segment; otherwise the row is one.
        context_size: context parallel ranks among which rows are shared out.
    """

    def __init__(
        self,
        mixture: Mixture | PhasedMixture,
        vocabulary: Vocabulary,
        weights: Sequence[float],
        reset_at_documents: bool = True,
        context_size: int = 1,
    ):
        self.mixture = mixture
        self.pad = vocabulary.pad
        self.reset_at_documents = reset_at_documents
        self.context_size = context_size
        self._indices = np.arange(mixture.context)
        classes: np.ndarray = vocabulary.token_class(np.arange(vocabulary.size))
        self._weight_of_id = np.array(weights, np.float32)[classes]

    def __getitem__(self, sample: int) -> Batch:
        return self.batch([sample])

    def batch(self, samples: Sequence[int]) -> Batch:
        """Rows of these samples, in order.

        Raises:
            InputError: an id outside the vocabulary; it names the shard and the document.
        """
        shape = (len(samples), self.mixture.context)
        arrays: dict[str, np.ndarray] = {
            "tokens": np.full(shape, self.pad, np.int64),
            "labels": np.empty(shape, np.int64),
            "weights": np.empty(shape, np.float32),
            "positions": np.empty(shape, np.int64),
            "segments": np.empty(shape, np.int32),
        }
        boundaries, documents = [], []
        for row, sample in enumerate(samples):
            source, pack = self.mixture[sample]
            pieces = source.pieces(pack)
            row_arrays = {name: array[row] for name, array in arrays.items()}
            boundaries.append(torch.from_numpy(self._fill(pieces, **row_arrays)))
            documents.append([(piece.store.name, piece.document) for piece in pieces])
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        order = np.stack([dispatch(bounds.numpy(), self.context_size) for bounds in boundaries])
        return Batch(  # type: ignore[arg-type]
            **tensors,
            boundaries=boundaries,
            order=torch.from_numpy(order),
            documents=documents,
        )

    def _fill(
        self,
        pieces: list[Piece],
        tokens: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
        positions: np.ndarray,
        segments: np.ndarray,
    ) -> np.ndarray:
        """Fill the arrays of one row, [s] each. Returns its boundaries."""
        ends = list(accumulate(piece.length for piece in pieces))
        for (store, document, start, length), end in zip(pieces, ends, strict=True):
            tokens[end - length : end] = store.read(document, start, length)
        lasts = np.array(ends) - 1
        labels[:-1] = tokens[1:]
        labels[-1] = self.pad
        # Labels are inside the vocabulary: checking again, as by default, would cost a copy.
        np.take(self._weight_of_id, labels, out=weights, mode="clip")
        for array, nothing in ((labels, IGNORE), (weights, 0)):
            array[lasts] = nothing
            array[ends[-1] :] = nothing  # padding
            for piece, end in zip(pieces, ends, strict=True):
                if piece.store.has_context:
                    is_context = _context_mask(piece)
                    array[end - piece.length : end - 1][is_context[1:]] = nothing
        boundaries = self._boundaries(ends)
        sizes = boundaries[1:] - boundaries[:-1]
        segments[:] = np.arange(len(sizes)).repeat(sizes)
        np.subtract(self._indices, boundaries[:-1].repeat(sizes), out=positions)
        return boundaries

    def _boundaries(self, ends: list[int]) -> np.ndarray:
        context = self.mixture.context
        if not self.reset_at_documents:
            return np.array([0, context], np.int32)
        padding_end = [context] if ends[-1] < context else []
        return np.array([0, *ends, *padding_end], np.int32)


def _context_mask(piece: Piece) -> np.ndarray:
    """Which tokens of a piece are context, bool [length]."""
    lengths, modes = piece.store.spans(piece.document)
    return np.repeat(modes == CONTEXT, lengths)[piece.start : piece.start + piece.length]


def step_batches(
    samples: PackedSamples,
    *,
    global_batch: int,
    micro_batch: int,
    data_rank: int,
    data_size: int,
    first_step: int,
    last_step: int,
    workers: int = 0,
    place: Callable[[Batch], Batch] | None = None,
) -> Iterator[list[Batch]]:
    """The micro-batches of one data-parallel rank, step by step.

    Step n takes samples n * global_batch up to (n + 1) * global_batch, whatever the number of
    ranks; rank r gets the r-th of equal, contiguous parts.

    Args:
        global_batch: samples a step, over all ranks.
        micro_batch: samples a micro-batch.
        data_rank, data_size: this rank, and how many there are.
        first_step, last_step: from `first_step` up to, not including, `last_step`.
        workers: processes that read ahead; 0 reads in this one.

    Raises:
        InputError: the batch does not divide, or the data cannot be read.
    """
    if global_batch % (data_size * micro_batch):
        raise InputError(
            f"batch.size={global_batch} must be a multiple of batch.micro_size={micro_batch} "
            f"times {data_size} data-parallel ranks"
        )
    share = global_batch // data_size
    firsts = (step * global_batch + data_rank * share for step in range(first_step, last_step))
    requests = (
        range(begin, begin + micro_batch)
        for first in firsts
        for begin in range(first, first + share, micro_batch)
    )
    return _read_ahead(samples, requests, share // micro_batch, workers, place)


def _read_ahead(
    samples: PackedSamples,
    requests: Iterator[range],
    per_step: int,
    workers: int,
    place: Callable[[Batch], Batch] | None,
) -> Iterator[list[Batch]]:
    loader = DataLoader(
        _Requests(samples, place),
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        # A fork server between us and them would heed the signals that they do not.
        multiprocessing_context="fork" if workers else None,
        collate_fn=_unchanged,
        worker_init_fn=_heed_no_signal,
        pin_memory=torch.cuda.is_available(),
    )
    step: list[Batch] = []
    for batch in loader:
        if isinstance(batch, InputError):
            raise batch
        step.append(batch)
        if len(step) == per_step:
            yield step
            step = []


class _Requests(Dataset["Batch | InputError"]):
    """Batches by the samples they ask for.

    Errors travel as values: torch would wrap one raised in a worker into a long traceback.
    """

    def __init__(self, samples: PackedSamples, place: Callable[[Batch], Batch] | None):
        self.samples, self.place = samples, place

    def __getitem__(self, request: range) -> Batch | InputError:
        try:
            batch = self.samples.batch(request)
            return self.place(batch) if self.place else batch
        except InputError as error:
            return error


def _heed_no_signal(worker: int) -> None:
    """A cluster's signal reaches every process of a job: the ranks decide, and still need data."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _unchanged(value: T) -> T:
    return value
