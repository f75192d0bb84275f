"""Held-out data: the same sequences in every evaluation of every run."""

from collections.abc import Iterator, Sequence

from emu3_megatron.config.data import DataSection, MixtureConfig, ValidationConfig
from emu3_megatron.data.batch_sizes import BatchSizes, Steps
from emu3_megatron.data.batches import Batch
from emu3_megatron.data.columns import Columns
from emu3_megatron.data.mixture import Mixture
from emu3_megatron.data.opening import open_sources
from emu3_megatron.data.rows import RowBuilder
from emu3_megatron.data.setting import Reader, Setting
from emu3_megatron.data.workers import steps_of
from emu3_megatron.errors import InputError


class HeldOut:
    """The data of a recipe's section `validation`. No caption is taken out of it.

    Args:
        data: what the run is trained on. Rows are laid out in the same way, and none of it is held
            out.

    Attributes:
        section: with the content of every source.

    Raises:
        InputError: a source is missing, damaged, of another context or vocabulary, or trained on;
            or there are fewer sequences than are asked for.
    """

    def __init__(self, section: ValidationConfig, setting: Setting, data: DataSection):
        self._setting = setting
        self._context = data.context
        trained = data if isinstance(data, MixtureConfig) else None
        self._reset = trained.reset_at_documents if trained else True
        sources, filled = open_sources(
            "validation.sources",
            section.sources,
            setting.vocabulary,
            data.context,
            setting.group,
        )
        self._columns = Columns(setting.columns)
        self._columns.check(sources)
        contents = {source.content for source in trained.sources} if trained else set()
        for source in sources:
            if source.content in contents:
                raise InputError(
                    f"validation.sources: {source} holds what data.sources hold; hold others out"
                )
        self.section = section.model_copy(update={"sources": filled})
        weights = [source.weight for source in section.sources]
        self._mixture = Mixture(sources, weights)  # no run's own seed
        self._check_size()

    def _check_size(self) -> None:
        batches, size = self.section.batches, self._setting.batch.size
        drawn = map(self._mixture.__getitem__, range(batches * size))
        if len({(source.content, row) for source, row in drawn}) < batches * size:
            raise InputError(
                f"validation.batches={batches} x batch.size={size} would read sequences of "
                "validation.sources twice; lower it, or pack more held-out data"
            )

    def batches(self, run: Reader) -> Iterator[list[Batch]]:
        """This data parallel rank's micro-batches of one evaluation, batch by batch."""
        setting, mesh, place = self._setting, run.mesh, run.trainer.place
        setting.batch.check(mesh.data_size)
        evaluated = setting.batch.model_copy(update={"ramp": None})
        builder = RowBuilder(
            setting.vocabulary,
            self._context,
            setting.weights,
            self._reset,
            mesh.context_size,
            tuple(setting.columns),
            setting.group,
        )

        def make(sequences: Sequence[int]) -> Batch:
            drawn = [self._mixture[sequence] for sequence in sequences]
            rows = [self._columns.attach(s, index, s.row(index)) for s, index in drawn]
            batch = builder.batch(rows)
            return place(batch) if place else batch

        return steps_of(
            make,
            Steps(BatchSizes(evaluated), 0, self.section.batches),
            setting.batch.micro_size,
            data_rank=mesh.data_rank,
            data_size=mesh.data_size,
        )
