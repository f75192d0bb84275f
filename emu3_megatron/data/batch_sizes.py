"""How many sequences a step takes, and which: a function of the step alone."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from emu3_megatron.config.training import BatchConfig


@dataclass(frozen=True)
class Steps(Iterable[range]):
    """The sequences of the steps after `first` up to `last`, from the first again each time."""

    sizes: "BatchSizes"
    first: int
    last: int

    def __iter__(self) -> Iterator[range]:
        return map(self.sizes.sequences, range(self.first + 1, self.last + 1))


class BatchSizes:
    """The sequences of every step. Steps count from 1, sequences from 0."""

    def __init__(self, batch: BatchConfig):
        self._size = batch.size
        # Sequences that are taken up to the end of each step of the ramp.
        self._ends = _ramp(batch)

    def sequences(self, step: int) -> range:
        """Those of a step."""
        return range(self.taken(step - 1), self.taken(step))

    def taken(self, step: int) -> int:
        """How many the steps up to this one take."""
        if step <= len(self._ends):
            return self._ends[step - 1] if step > 0 else 0
        done = self._ends[-1] if self._ends else 0
        return done + (step - len(self._ends)) * self._size


def _ramp(batch: BatchConfig) -> list[int]:
    if batch.ramp is None:
        return []
    from megatron.core.num_microbatches_calculator import (  # takes seconds
        RampupBatchsizeNumMicroBatchesCalculator,
    )

    ramp, ends, taken = batch.ramp, [], 0
    sizes = RampupBatchsizeNumMicroBatchesCalculator(
        global_batch_size=batch.size,
        micro_batch_size=1,
        data_parallel_size=1,
        decrease_batch_size_if_needed=False,
        rank=0,
        start_global_batch_size=ramp.start,
        batch_size_increment=ramp.increment,
        ramup_samples=ramp.sequences,
    )
    while (size := sizes.get_current_global_batch_size()) < batch.size:
        taken += size
        ends.append(taken)
        sizes.update(taken, consistency_check=False)
    return ends
