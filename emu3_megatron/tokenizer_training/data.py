"""Gives a rank its samples of each step, read ahead by worker processes."""

from collections.abc import Iterator

from torch.utils.data import Dataset

from emu3_megatron.checkpoints.state import Saved, State
from emu3_megatron.config.tokenizer_training import TokenizerBatchConfig, TokenizerData
from emu3_megatron.data.reading_ahead import read_ahead
from emu3_megatron.runs.interfaces import Run
from emu3_megatron.tokenizer_training.samples import Sample, Samples


class TokenizerFiles:
    """Photos and clips, as `runs.interfaces.Data`.

    Step n, from 1, takes samples (n - 1) * size up to n * size, whatever the number of ranks; rank
    r of R gets every R-th of them, from the r-th on.

    Args:
        least_side: see `Samples`.

    Attributes:
        section: the recipe's, with the hash of what lies in the folders.
    """

    def __init__(
        self, section: TokenizerData, batch: TokenizerBatchConfig, seed: int, least_side: int = 1
    ):
        self.samples = Samples(section, seed, least_side)
        self.section = section.model_copy(update={"content": self.samples.content()})
        self.batch = batch

    def batches(self, run: Run, first: int, last: int) -> Iterator[list[Sample]]:
        """See `runs.interfaces.Data`."""
        workers = self.section.workers
        steps = _Steps(self.samples, self.batch.size, run.mesh.rank, run.mesh.size)
        yield from read_ahead(steps, range(first, last), workers)

    def state_dict(self, saved: Saved | None = None) -> State:
        """Nothing: samples follow from the seed and their number."""
        return {}

    def load_state_dict(self, state: State) -> None: ...


class _Steps(Dataset[list[Sample]]):
    """This rank's samples of a step, by the number of the step from 0."""

    def __init__(self, samples: Samples, size: int, rank: int, ranks: int):
        self.samples = samples
        self.size, self.rank, self.ranks = size, rank, ranks

    def __getitem__(self, step: int) -> list[Sample]:
        first = step * self.size
        indices = range(first + self.rank, first + self.size, self.ranks)
        return [self.samples.read(index) for index in indices]
