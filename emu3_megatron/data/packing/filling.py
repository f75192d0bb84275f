"""Cuts the emptiest packs of text into the gaps that best fit leaves.

Images and clips are never cut, so packs keep gaps that no whole document fits. Text may be cut:
the emptiest packs that hold nothing else are dissolved, as many as fit into the gaps of the others.
Like best fit, this works on groups of equal lengths and equal gaps.
"""

from dataclasses import dataclass

import numpy as np

from emu3_megatron.data.packing.bestfit import Bins, assign, best_fit, columns, runs
from emu3_megatron.data.packing.groups import Group, SizedGroups
from emu3_megatron.data.packing.pieces import Pieces

SHORTEST = 64  # tokens; no cut leaves less on either side


@dataclass(frozen=True)
class Placed:
    """Which bin each piece is in, and in which slot of it; integers [n] each."""

    indices: np.ndarray  # of pieces
    bins: np.ndarray
    slots: np.ndarray

    def __getitem__(self, index: np.ndarray) -> "Placed":
        return Placed(self.indices[index], self.bins[index], self.slots[index])

    def append(self, other: "Placed") -> "Placed":
        return Placed(
            np.concatenate([self.indices, other.indices]),
            np.concatenate([self.bins, other.bins]),
            np.concatenate([self.slots, other.slots]),
        )


def dissolved_bins(bins: Bins, first_text: int, context: int, max_pieces: int) -> np.ndarray:
    """The emptiest bins of text alone, as many as fit into the gaps of all others.

    Args:
        first_text: bins from this one on hold text alone.

    Returns:
        bool [bins].
    """
    gaps = _usable_gaps(bins, max_pieces)
    texts = first_text + np.argsort(-bins.residual[first_text:], kind="stable")
    needed = np.cumsum(context - bins.residual[texts])
    offered = gaps.sum() - np.cumsum(gaps[texts])
    dissolved = np.zeros(len(bins), bool)
    dissolved[texts[needed <= offered]] = True  # needed rises and offered falls: a prefix
    return dissolved


def _usable_gaps(bins: Bins, max_pieces: int) -> np.ndarray:
    usable = (bins.residual >= SHORTEST) & (bins.pieces < max_pieces)
    return np.where(usable, bins.residual, 0)


def fill_gaps(
    texts: Pieces, bins: Bins, dissolved: np.ndarray, context: int, max_pieces: int
) -> tuple[Pieces, Placed]:
    """Put the texts of dissolved bins into the gaps of the others.

    Args:
        texts: by falling length.
        dissolved: bool [bins].

    Returns:
        `texts`, cut where needed, and their places. What finds no gap goes into new bins, counted
        from `len(bins)`.
    """
    gaps = np.where(dissolved, 0, _usable_gaps(bins, max_pieces))
    targets = np.flatnonzero(gaps)
    targets = targets[np.lexsort((bins.pieces[targets], gaps[targets]))]
    filler = _Filler(max_pieces)
    for length, first, count in _equal_runs(texts.lengths):
        filler.texts.put(length, (first, count, 0))
    keys = gaps[targets] * (max_pieces + 1) + bins.pieces[targets]
    for key, first, count in _equal_runs(keys):
        gap, held = divmod(key, max_pieces + 1)
        filler.gaps.put(gap, (first, count, held))
    filler.run()
    filled, rest = _expand(filler.pieces, texts), _expand(filler.rest, texts)
    rest = rest[np.argsort(-rest.lengths, kind="stable")]
    steps, _ = best_fit([np.bincount(rest.lengths, minlength=context + 1)], context, max_pieces)
    rest_bins, rest_slots = assign(steps)
    first_gap, count, slot = columns(filler.places, 3)
    placed = Placed(
        np.arange(len(filled) + len(rest)),
        np.concatenate([targets[runs(first_gap, count)], rest_bins + len(bins)]),
        np.concatenate([np.repeat(slot, count), rest_slots]),
    )
    return Pieces.concatenate([filled, rest]), placed


class _Filler:
    """A text group's state is the first token left of each; a gap group's the pieces in its bin."""

    def __init__(self, max_pieces: int):
        self.max_pieces = max_pieces
        self.texts = SizedGroups()
        self.gaps = SizedGroups()
        self.pieces: list[tuple[int, int, int, int]] = []  # first text, number, start, length
        self.places: list[tuple[int, int, int]] = []  # first gap, number, slot: of each of these
        self.rest: list[tuple[int, int, int, int]] = []  # as `pieces`, without places

    def run(self) -> None:
        """Longest text first: whole where one fits, else cut to the largest gap."""
        while longest := self.texts.take_largest():
            length, text = longest
            place = self.gaps.take_fitting(length) or self.gaps.take_largest()
            if place is None:
                self._leave(length, text)
            elif place[0] < length < 2 * SHORTEST:  # neither fits nor may be cut
                self.gaps.put(*place)
                self._leave(length, text)
            else:
                self._put(length, text, *place)

    def _leave(self, length: int, text: Group) -> None:
        first, number, start = text
        self.rest.append((first, number, start, length))

    def _put(self, length: int, text: Group, gap: int, place: Group) -> None:
        first, number, start = text
        first_gap, number_gaps, held = place
        piece = length if length <= gap else min(gap, length - SHORTEST)
        count = min(number, number_gaps)
        self.pieces.append((first, count, start, piece))
        self.places.append((first_gap, count, held))
        self.texts.put(length, (first + count, number - count, start))
        self.gaps.put(gap, (first_gap + count, number_gaps - count, held))
        if piece < length:
            self.texts.put(length - piece, (first, count, start + piece))
        if gap - piece >= SHORTEST and held + 1 < self.max_pieces:
            self.gaps.put(gap - piece, (first_gap, count, held + 1))


def _equal_runs(values: np.ndarray) -> list[tuple[int, int, int]]:
    """Value, first index and number of each run of equal values."""
    if not len(values):
        return []
    firsts = np.flatnonzero(np.diff(values, prepend=values[0] - 1))
    counts = np.diff(firsts, append=len(values))
    return list(zip(values[firsts].tolist(), firsts.tolist(), counts.tolist(), strict=True))


def _expand(rows: list[tuple[int, int, int, int]], texts: Pieces) -> Pieces:
    first, count, start, length = columns(rows, 4)
    whole = texts[runs(first, count)]
    return Pieces(
        whole.documents,
        whole.starts + np.repeat(start, count).astype(np.int32),
        np.repeat(length, count).astype(np.int32),
        whole.is_text,
    )
