"""The order of a run's sequences: a weighted mixture over sources."""

from collections.abc import Sequence

import numpy as np

from emu3_megatron.data.source import Source
from emu3_megatron.errors import InputError

_PERIOD = 1 << 16  # sequences after which the order of sources repeats


class Mixture:
    """Which row is sequence k of a run: a pure function of sources, weights, seed and k.

    Sources follow megatron-core's blending, so that after any number of sequences each has given
    its share to within a sequence or so. Each source gives its rows in an order of its own in every
    epoch.

    Args:
        weights: share of the sequences, up to a factor.
        seed: of the orders inside the sources.
        numbers: what tells the sources' orders apart; by default their places.
        given: rows that each source has given before sequence 0, in an earlier phase of the run.

    Raises:
        InputError: a weight is not positive or less than 1/65,536 of all.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        weights: Sequence[float],
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        given: Sequence[int] | None = None,
    ):
        self.sources = list(sources)
        self.seed = seed
        self._numbers = list(numbers or range(len(self.sources)))
        self._given = list(given or [0] * len(self.sources))
        self._source_k, self._turn_k = _blend(weights)
        self._turns = np.bincount(self._source_k, minlength=len(self.sources)).tolist()
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # source: (epoch, order)

    def __getitem__(self, sequence: int) -> tuple[Source, int]:
        """The source that a sequence comes from, and which of its rows it is."""
        period, k = divmod(sequence, _PERIOD)
        source = int(self._source_k[k])
        turns = self._given[source] + period * self._turns[source] + int(self._turn_k[k])
        epoch, turn = divmod(turns, len(self.sources[source]))
        return self.sources[source], int(self._order(source, epoch)[turn])

    def _order(self, source: int, epoch: int) -> np.ndarray:
        kept, order = self._orders.get(source, (-1, np.empty(0)))
        if kept != epoch:
            # RandomState and not Generator: numpy promises that its numbers never change, and a
            # run may be resumed under another numpy.
            number = self._numbers[source]
            bits = np.random.MT19937(np.random.SeedSequence([self.seed, number, epoch]))
            order = np.random.RandomState(bits).permutation(len(self.sources[source]))
            self._orders[source] = epoch, order
        return order


def rows_given(weights: Sequence[float], sequences: int) -> list[int]:
    """How many rows each source of a mixture has given after so many sequences."""
    source_k, _ = _blend(weights)
    periods, rest = divmod(sequences, _PERIOD)
    count = lambda part: np.bincount(part, minlength=len(weights))
    return (periods * count(source_k) + count(source_k[:rest])).tolist()


def _blend(weights: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """For each sequence of a period: its source, and how many that source gave before it."""
    from megatron.core.datasets.helpers_cpp import build_blending_indices  # takes seconds

    if min(weights) <= 0:
        raise InputError(f"weights {list(weights)}: a source's weight must be above 0")
    shares = np.array(weights, np.float64) / np.sum(weights)
    if shares.min() * _PERIOD < 1:
        raise InputError(
            f"weights {list(weights)}: the smallest is less than 1 sequence in {_PERIOD:,}; "
            "raise it"
        )
    source_k = np.empty(_PERIOD, np.int16)
    turn_k = np.empty(_PERIOD, np.int64)
    build_blending_indices(source_k, turn_k, shares, len(shares), _PERIOD, False)
    return source_k, turn_k
