"""Measures how even an order of tokens is, and what its ranks must exchange."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Balance:
    """Two figures of an order, and by rank what they come from.

    Attributes:
        work_c: pairs of a query and a key that it sees, int64 [ranks].
        keys_c: tokens of other ranks that the rank's queries see, int64 [ranks].
        ring: tokens a rank receives in a full ring: all that it does not hold.
    """

    work_c: np.ndarray
    keys_c: np.ndarray
    ring: int

    @classmethod
    def of(cls, boundaries: np.ndarray, order_cs: np.ndarray) -> "Balance":
        """Count token by token.

        Args:
            boundaries: where the pack's segments begin, and its end, [segments + 1].
            order_cs: the tokens each rank holds, ascending, [ranks, s / ranks].
        """
        document_cs = np.searchsorted(boundaries, order_cs, side="right") - 1
        seen_cs = order_cs - boundaries[document_cs] + 1
        # The last token that a rank holds of a document sees all that the rank needs of it.
        is_last_cs = np.ones_like(document_cs, bool)
        is_last_cs[:, :-1] = document_cs[:, 1:] != document_cs[:, :-1]
        ranks, share = order_cs.shape
        keys_c = (seen_cs * is_last_cs).sum(axis=1) - share
        return cls(seen_cs.sum(axis=1), keys_c, (ranks - 1) * share)

    @property
    def work_max_over_mean(self) -> float:
        """The busiest rank's work over the mean: everyone waits for it."""
        return float(self.work_c.max() / self.work_c.mean())

    @property
    def exchange_fraction(self) -> float:
        """What the neediest rank receives, of a full ring."""
        return float(self.keys_c.max() / self.ring) if self.ring else 0.0
