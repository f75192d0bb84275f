"""Pieces of documents, of which packs are made: where documents longer than a pack are cut."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.errors import InputError


@dataclass(frozen=True)
class Pieces:
    """Stretches of documents, one an index.

    While groups of documents are packed, a group is a piece: its first document, the tokens of all.

    Attributes:
        documents: counted through all shards in order, int64 [n].
        starts: first token inside the document, int32 [n].
        lengths: in tokens, int32 [n].
        is_text: a piece of a document of text alone, which may be cut, bool [n].
    """

    documents: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    is_text: np.ndarray

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: np.ndarray | slice) -> "Pieces":
        return Pieces(*(array[index] for array in self._arrays()))

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.documents, self.starts, self.lengths, self.is_text

    @classmethod
    def whole(cls, lengths: np.ndarray, is_text: np.ndarray, first: int = 0) -> "Pieces":
        """Whole documents, counted from `first`."""
        documents = np.arange(first, first + len(lengths))
        starts = np.zeros(len(lengths), np.int32)
        return cls(documents, starts, lengths.astype(np.int32), is_text)

    @classmethod
    def concatenate(cls, parts: "Sequence[Pieces]") -> "Pieces":
        return cls(*map(np.concatenate, zip(*(part._arrays() for part in parts), strict=True)))


def pieces_of(
    store: TokenStore, context: int, first: int = 0, taken: np.ndarray | None = None
) -> Pieces:
    """The documents of a shard, those longer than `context` cut inside text; or its groups.

    Args:
        first: number of the shard's first document.
        taken: which documents, bool [documents]; all without it.

    Raises:
        InputError: a vision span or a group is longer than `context`.
    """
    lengths = store.document_lengths if taken is None else store.document_lengths * taken
    if store.group is not None:
        return _groups(store, lengths, store.group, context, first)
    whole = Pieces.whole(lengths, store.is_text(), first)
    is_long = lengths > context
    fits = (lengths > 0) & ~is_long
    if fits.all():
        return whole
    text = _cut_text(whole[is_long & whole.is_text], context)
    mixed = np.flatnonzero(is_long & ~whole.is_text)
    parts = [_cut_around_vision(store, int(document), context, first) for document in mixed]
    return Pieces.concatenate([whole[fits], text, *parts])


def _groups(store: TokenStore, lengths: np.ndarray, group: int, context: int, first: int) -> Pieces:
    """A piece a group; groups are taken whole or not at all."""
    sizes = lengths.reshape(-1, group).sum(axis=1)
    too_long = np.flatnonzero(sizes > context)
    if len(too_long):
        number = int(too_long[0])
        raise InputError(
            f"{store.prefix}: documents {number * group} to {(number + 1) * group - 1}, a group "
            f"that may not be cut, are {int(sizes[number]):,} tokens, the context is {context:,}; "
            "raise the context, or make the documents shorter"
        )
    documents = first + np.arange(0, len(lengths), group)
    starts, never = np.zeros(len(sizes), np.int32), np.zeros(len(sizes), bool)
    return Pieces(documents, starts, sizes.astype(np.int32), never)[np.flatnonzero(sizes)]


def documents_of_groups(groups: Pieces, group: int, document_lengths: np.ndarray) -> Pieces:
    """The documents of groups, side by side.

    Args:
        document_lengths: of all documents, counted through all shards.
    """
    documents = (groups.documents[:, None] + np.arange(group)).reshape(-1)
    lengths = document_lengths[documents].astype(np.int32)
    return Pieces(documents, np.zeros_like(lengths), lengths, np.zeros(len(lengths), bool))


def _cut_text(pieces: Pieces, context: int) -> Pieces:
    """Full packs, and a rest."""
    number = -(-pieces.lengths // context)
    last = np.cumsum(number) - 1
    cut = pieces[np.repeat(np.arange(len(pieces)), number)]
    step = np.arange(len(cut), dtype=np.int32) - np.repeat(last + 1 - number, number)
    starts = (step * context).astype(np.int32)
    lengths = np.minimum(cut.lengths - starts, context)
    return Pieces(cut.documents, starts, lengths, cut.is_text)


def _cut_around_vision(store: TokenStore, document: int, context: int, first: int) -> Pieces:
    """Cut where a pack is full; before an image or clip if it would be cut, which then takes
    along as much of the text before it as fits."""
    visions = _vision_spans(store, document)
    end = int(store.spans(document)[0].sum(dtype=np.int64))
    _check_fits(store, document, visions, end, context)
    borders = [0]
    while borders[-1] + context < end:
        cut, text_begin = borders[-1] + context, 0
        for begin, stop in visions:
            if begin < cut < stop:
                space_for_next = int(stop < end)  # the EOS, say
                cut = min(begin, max(text_begin, stop + space_for_next - context))
                break
            text_begin = stop
        borders.append(cut)
    starts = np.array(borders, np.int32)
    lengths = np.diff(starts, append=np.int32(end))
    documents = np.full(len(starts), first + document)
    return Pieces(documents, starts, lengths, np.zeros(len(starts), bool))


def _vision_spans(store: TokenStore, document: int) -> list[tuple[int, int]]:
    """First and one past the last token of each image and clip."""
    lengths, _ = store.spans(document)
    ends = np.cumsum(lengths, dtype=np.int64)
    tokens = store.read(document)
    spans = zip((ends - lengths).tolist(), ends.tolist(), strict=True)
    mark = store.vocabulary.vision_start
    return [(begin, end) for begin, end in spans if begin < end and tokens[begin] == mark]


def _check_fits(
    store: TokenStore, document: int, visions: list[tuple[int, int]], end: int, context: int
) -> None:
    longest = max((stop - begin for begin, stop in visions), default=0)
    if longest > context:
        raise InputError(
            f"{store.prefix}: document {document} ({end:,} tokens) holds an image or clip of "
            f"{longest:,} tokens, the context is {context:,}; "
            "raise the context, or prepare smaller images or shorter clips"
        )
