"""Cuts a pack into blocks of equal length: the work of each, and the keys it must see."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Blocks:
    """Blocks of one pack, int64 [blocks] each.

    Whole numbers throughout: every rank solves for itself, and all must find the same.

    Attributes:
        size: tokens a block.
        work: pairs of a query and a key that it sees, queries of the block.
        document: the one that holds the block's first token. Later ones begin inside the block.
        start: where that document begins.
        end: where the block ends.
    """

    size: int
    work: np.ndarray
    document: np.ndarray
    start: np.ndarray
    end: np.ndarray

    @classmethod
    def of(cls, boundaries: np.ndarray, size: int) -> "Blocks":
        """Cut a pack whose length is a multiple of `size`.

        Args:
            boundaries: where segments begin, and the end, int64 [segments + 1].
        """
        edges = np.arange(0, boundaries[-1] + 1, size)
        document = np.searchsorted(boundaries, edges[:-1], side="right") - 1
        lengths = boundaries[1:] - boundaries[:-1]
        before = np.append(0, np.cumsum(lengths * (lengths + 1) // 2))[document]
        inside = edges[:-1] - boundaries[document]
        pairs = np.append(before + inside * (inside + 1) // 2, _pairs(lengths))
        return cls(size, np.diff(pairs), document, boundaries[document], edges[1:])

    def joined(self, number: int) -> "Blocks":
        """The same pack in longer blocks, of as many neighbours each."""
        work = self.work.reshape(-1, number).sum(axis=1)
        first, last = slice(None, None, number), slice(number - 1, None, number)
        return Blocks(
            self.size * number, work, self.document[first], self.start[first], self.end[last]
        )

    @property
    def work_a_token(self) -> int:
        """The mean, at least 1: what a key that is to be fetched is weighed with."""
        return int(self.work.sum()) // int(self.end[-1])

    def loads(self, held_cn: np.ndarray) -> np.ndarray:
        """Work of each rank.

        Args:
            held_cn: the blocks each rank holds, ascending, [ranks, blocks / ranks].
        """
        return self.work[held_cn].sum(axis=1)

    def needs(self, held_cn: np.ndarray) -> np.ndarray:
        """Tokens of other ranks that each rank's queries see.

        A block sees from where its document starts to its own end; a rank sees the union.
        """
        end_cn = self.end[held_cn]
        seen_cn = np.zeros_like(end_cn)
        seen_cn[:, 1:] = end_cn[:, :-1]
        new_cn = end_cn - np.maximum(self.start[held_cn], seen_cn)
        return new_cn.sum(axis=1) - held_cn.shape[1] * self.size


def _pairs(lengths: np.ndarray) -> np.int64:
    return (lengths * (lengths + 1) // 2).sum()
