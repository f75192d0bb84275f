"""Assigns pieces of documents to packs: best fit, then text cut into the gaps left over."""

from dataclasses import dataclass, replace

import numpy as np

from emu3_megatron.data.packing.bestfit import Bins, assign, best_fit, lower_bound
from emu3_megatron.data.packing.filling import Placed, dissolved_bins, fill_gaps
from emu3_megatron.data.packing.pieces import Pieces


@dataclass(frozen=True)
class Packing:
    """Pieces by pack: pack i holds `pieces[offsets[i] : offsets[i + 1]]`.

    Attributes:
        offsets: int64 [packs + 1].
        pieces: each no longer than a pack.
        context: tokens a pack takes.
        bound: packs that no packing of uncut pieces can do without (the L2 bound).
    """

    offsets: np.ndarray
    pieces: Pieces
    context: int
    bound: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def fill(self) -> float:
        """Tokens over context, 0 to 1."""
        return int(self.pieces.lengths.sum(dtype=np.int64)) / (len(self) * self.context)


def pack_pieces(
    pieces: Pieces,
    context: int,
    *,
    seed: int = 0,
    max_documents: int = 256,
    cut_text: bool = True,
) -> Packing:
    """Pack pieces of documents.

    Args:
        pieces: each no longer than `context`.
        context: tokens a pack takes.
        seed: which equally long pieces go together, and the order of the packs.
        max_documents: pieces a pack takes at most: a pack of very many stalls every other rank.
        cut_text: fill the gaps left over with text that is cut.
    """
    # Longest first; where text may be cut, what may not be cut chooses its place before it.
    kind_n = pieces.is_text * np.int32(context + 1) if cut_text else np.int32(0)
    counts_n = np.bincount(pieces.lengths + kind_n, minlength=2 * (context + 1))
    histograms = counts_n.reshape(2, context + 1)
    counts = histograms.sum(axis=0)
    steps, bins = best_fit(histograms, context, max_documents)
    rank_n = context - pieces.lengths + kind_n
    placed = Placed(_random_order(len(pieces), (seed, 0), rank_n, 2 * context + 1), *assign(steps))
    if cut_text:
        pieces, placed = _cut_text_into_gaps(pieces, placed, bins, context, max_documents)
    return Packing(*_by_pack(pieces, placed, seed), context, lower_bound(counts, context))


def _cut_text_into_gaps(
    pieces: Pieces, placed: Placed, bins: Bins, context: int, max_documents: int
) -> tuple[Pieces, Placed]:
    dissolved = dissolved_bins(bins, bins.opened[0], context, max_documents)
    if not dissolved.any():
        return pieces, placed
    moves = dissolved[placed.bins]
    texts = pieces[placed.indices[moves]]
    cut, moved = fill_gaps(texts, bins, dissolved, context, max_documents)
    moved = replace(moved, indices=moved.indices + len(pieces))
    return Pieces.concatenate([pieces, cut]), placed[~moves].append(moved)


def _random_order(
    number: int, seed: tuple[int, int], rank: np.ndarray | int = 0, largest_rank: int = 0
) -> np.ndarray:
    """Indices 0 to `number` by rising rank, equal ones in random order, int64 [number].

    One sort of 64-bit keys, the rank above random bits above the index, takes a fraction of a
    shuffle and a stable argsort.
    """
    index_bits, rank_bits = number.bit_length(), largest_rank.bit_length()
    keys = np.random.default_rng(seed).integers(0, 2**64, number, dtype=np.uint64)
    keys >>= np.uint64(rank_bits + index_bits)
    keys <<= np.uint64(index_bits)
    keys |= np.arange(number, dtype=np.uint64)
    if rank_bits:
        keys |= np.asarray(rank).astype(np.uint64) << np.uint64(64 - rank_bits)
    keys.sort()
    keys &= np.uint64((1 << index_bits) - 1)
    return keys.view(np.int64)


def _by_pack(pieces: Pieces, placed: Placed, seed: int) -> tuple[np.ndarray, Pieces]:
    """Packs in random order: where each begins, int64 [packs + 1], and the pieces of one after
    another."""
    sizes = np.bincount(placed.bins)
    used = np.flatnonzero(sizes)
    order = used[_random_order(len(used), (seed, 1))]
    offsets = np.concatenate([[0], np.cumsum(sizes[order])])
    begins = np.empty(len(sizes), np.int64)
    begins[order] = offsets[:-1]
    by_pack = np.empty(len(placed.indices), np.int64)
    by_pack[begins[placed.bins] + placed.slots] = placed.indices
    return offsets, pieces[by_pack]
