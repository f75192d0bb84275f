"""Finds the rank that the others wait for, from the clocks of communication."""

import math
from collections.abc import Sequence

ROWS = 3  # of metrics in a row that must show the same rank
SHARE = 0.1  # of a step that the others wait for it


class SlowRank:
    """Sees how long each rank stood in collectives, row of metrics by row.

    A rank that comes late to a collective waits for nobody there, and all others for it: it stands
    in collectives least. One row may be chance, so several must agree.
    """

    def __init__(self) -> None:
        self.rank: int | None = None
        self.rows = 0

    def see(self, waits: Sequence[float], step_seconds: float) -> tuple[int, float] | None:
        """The late rank, and the share of a step that it costs, once when it is found.

        Args:
            waits: seconds in collectives in one step, by rank.
        """
        if len(waits) < 2 or any(map(math.isnan, waits)):  # they were not counted
            return None
        least, second = sorted(waits)[:2]
        share = (second - least) / step_seconds
        rank = waits.index(least) if share > SHARE else None
        self.rows = self.rows + 1 if rank == self.rank else 1
        self.rank = rank
        return (rank, share) if rank is not None and self.rows == ROWS else None
