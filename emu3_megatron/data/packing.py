"""Which pieces of documents share a pack: best fit, then text cut into the room left over."""

from dataclasses import dataclass

import numpy as np

from emu3_megatron.data.bestfit import assign, best_fit, lower_bound
from emu3_megatron.data.pieces import Pieces


@dataclass(frozen=True)
class Packing:
    """Pieces by pack: pack i holds `pieces[offsets[i] : offsets[i + 1]]`.

    Attributes:
        offsets: int64 [packs + 1].
        pieces: each no longer than a pack.
        context: tokens a pack takes.
        bound: packs that no packing of uncut pieces can do without (the L2 bound).
        uncut_packs: packs that best fit took before text was cut.
    """

    offsets: np.ndarray
    pieces: Pieces
    context: int
    bound: int
    uncut_packs: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def fill(self) -> float:
        """Tokens over room, 0 to 1."""
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
    """
    counts = np.bincount(pieces.lengths, minlength=context + 1)
    counts[0] = 0
    steps, bins = best_fit(counts, context, max_documents)
    order = _longest_first(pieces.lengths, context, seed)
    bin_n, slot_n = assign(steps)
    rank = np.random.default_rng((seed, 1)).permutation(len(bins))
    offsets, position_n = _positions(bin_n, slot_n, rank)
    by_pack = np.empty_like(order)
    by_pack[position_n] = order
    return Packing(
        offsets, pieces[by_pack], context, lower_bound(counts, context), uncut_packs=len(bins)
    )


def _longest_first(lengths: np.ndarray, context: int, seed: int) -> np.ndarray:
    """Indices of the pieces that are not empty by falling length, equal ones in random order.

    One sort of 64-bit keys, length above random bits above the index, takes a fraction of a
    shuffle and a stable argsort.
    """
    index_bits = np.uint64(len(lengths).bit_length())
    length_bits = np.uint64(context.bit_length())
    keys = np.random.default_rng((seed, 0)).integers(0, 2**64, len(lengths), dtype=np.uint64)
    keys >>= length_bits + index_bits
    keys <<= index_bits
    keys |= np.arange(len(lengths), dtype=np.uint64)
    keys |= (context - lengths).astype(np.uint64) << (np.uint64(64) - length_bits)
    keys.sort()
    keys &= (np.uint64(1) << index_bits) - np.uint64(1)
    return keys.view(np.int64)[: np.count_nonzero(lengths)]


def _positions(
    bin_n: np.ndarray, slot_n: np.ndarray, rank: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where each pack begins when bin i is pack rank[i], and where each piece goes."""
    sizes = np.empty(len(rank), np.int64)
    sizes[rank] = np.bincount(bin_n, minlength=len(rank))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return offsets, offsets[rank][bin_n] + slot_n
