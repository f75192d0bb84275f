"""The order of a run's samples: a weighted mixture over pack sets."""

from collections.abc import Sequence

import numpy as np

from emu3_megatron.data.packing.pack_set import PackSet
from emu3_megatron.errors import InputError

_PERIOD = 1 << 16  # samples after which the order of sources repeats


class Mixture:
    """Which pack is sample k of a run: a pure function of sources, weights, seed and k.

    Sources follow megatron-core's blending, so that after any number of samples each has given its
    share to within a sample or so. Each source gives its packs in an order of its own in every
    epoch.

    Args:
        sources: pack sets of one context.
        weights: share of the samples, up to a factor.
        seed: of the orders inside the sources.
        numbers: what tells the sources' orders apart; by default their places.
        given: packs that each source has given before sample 0, in an earlier phase of the run.

    Raises:
        InputError: contexts differ, or a weight is not positive or less than 1/65,536 of all.
    """

    def __init__(
        self,
        sources: Sequence[PackSet],
        weights: Sequence[float],
        seed: int = 0,
        numbers: Sequence[int] | None = None,
        given: Sequence[int] | None = None,
    ):
        self.sources = list(sources)
        self.seed = seed
        self._numbers = list(numbers or range(len(self.sources)))
        self._given = list(given or [0] * len(self.sources))
        contexts = {source.context for source in self.sources}
        if len(contexts) > 1:
            found = ", ".join(f"{source.path} {source.context:,}" for source in self.sources)
            raise InputError(f"packs of different contexts: {found}; pack them anew for one")
        self._source_k, self._turn_k = _blend(weights)
        self._turns = np.bincount(self._source_k, minlength=len(self.sources)).tolist()
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # source: (epoch, order)

    @property
    def context(self) -> int:
        return self.sources[0].context

    def __getitem__(self, sample: int) -> tuple[PackSet, int]:
        """The source and the number of the pack that sample `sample` of the run is."""
        period, k = divmod(sample, _PERIOD)
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


def packs_given(weights: Sequence[float], samples: int) -> list[int]:
    """How many packs each source of a mixture has given after so many samples."""
    source_k, _ = _blend(weights)
    periods, rest = divmod(samples, _PERIOD)
    count = lambda part: np.bincount(part, minlength=len(weights))
    return (periods * count(source_k) + count(source_k[:rest])).tolist()


def _blend(weights: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """For each sample of a period: its source, and how many that source gave before it."""
    from megatron.core.datasets.helpers_cpp import build_blending_indices  # takes seconds

    if min(weights) <= 0:
        raise InputError(f"weights {list(weights)}: a source's weight must be above 0")
    shares = np.array(weights, np.float64) / np.sum(weights)
    if shares.min() * _PERIOD < 1:
        raise InputError(
            f"weights {list(weights)}: the smallest is less than 1 sample in {_PERIOD:,}; raise it"
        )
    source_k = np.empty(_PERIOD, np.int16)
    turn_k = np.empty(_PERIOD, np.int64)
    build_blending_indices(source_k, turn_k, shares, len(shares), _PERIOD, False)
    return source_k, turn_k
