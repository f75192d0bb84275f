"""Selects the documents of a shard that are packed, by their layout."""

import numpy as np

from emu3_megatron.config.prepare import Select
from emu3_megatron.data.shards.store import TRAINED, TokenStore


def selected(store: TokenStore, select: Select) -> np.ndarray:
    """Which documents a selection takes, bool [documents]; a group as a whole or not at all."""
    taken = _selected(store, select)
    if store.group is None:
        return taken
    return np.repeat(taken.reshape(-1, store.group).all(axis=1), store.group)


def _selected(store: TokenStore, select: Select) -> np.ndarray:
    if select == "all":
        return np.ones(len(store), bool)
    spans = _Spans(store)
    if select == "text":
        return ~spans.any_is_vision()
    has_text_first = (spans.number >= 2) & ~spans.is_vision(0) & spans.is_vision(1)
    if select == "captioned":
        return has_text_first & spans.is_trained(0) & (spans.length(0) > 1)
    text_follows = (spans.number >= 3) & ~spans.is_vision(2) & (spans.length(2) > 1)
    return has_text_first & (spans.length(0) == 1) & text_follows


class _Spans:
    """The spans of every document that hold tokens; `place` counts them in a document.

    Attributes:
        number: of each document, int64 [documents].
    """

    def __init__(self, store: TokenStore):
        index, heads = store.index, store.span_heads()
        holds_tokens = index.lengths > 0
        documents = np.repeat(np.arange(len(store)), np.diff(index.first_sequences))
        self.number = np.bincount(documents[holds_tokens], minlength=len(store))
        self._firsts = np.cumsum(self.number) - self.number
        self._documents = documents[holds_tokens]
        self._lengths = index.lengths[holds_tokens]
        self._trained = index.modes[holds_tokens] == TRAINED
        self._vision = heads[holds_tokens] == store.vocabulary.vision_start

    def any_is_vision(self) -> np.ndarray:
        return np.bincount(self._documents[self._vision], minlength=len(self.number)) > 0

    def is_vision(self, place: int) -> np.ndarray:
        return self._at(place, self._vision)

    def is_trained(self, place: int) -> np.ndarray:
        return self._at(place, self._trained)

    def length(self, place: int) -> np.ndarray:
        return self._at(place, self._lengths)

    def _at(self, place: int, values: np.ndarray) -> np.ndarray:
        """Of each document the span at `place`; 0 or False where it has fewer."""
        found = np.zeros(len(self.number), values.dtype)
        has_it = self.number > place
        found[has_it] = values[self._firsts[has_it] + place]
        return found
