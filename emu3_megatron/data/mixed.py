"""The built-in data, of kind `mixture`: a weighted mixture of sources."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from emu3_megatron.config.data import AnySource, MixtureConfig
from emu3_megatron.data.batch_sizes import BatchSizes, Steps
from emu3_megatron.data.batches import Batch
from emu3_megatron.data.columns import Columns
from emu3_megatron.data.null_prompt import NullPrompt
from emu3_megatron.data.opening import open_sources
from emu3_megatron.data.phases import Phase, PhasedMixture, Share, phases_of
from emu3_megatron.data.rows import RowBuilder
from emu3_megatron.data.setting import Reader, Setting
from emu3_megatron.data.source import Piece, Source
from emu3_megatron.data.workers import steps_of
from emu3_megatron.grammar import GrammarError, metas

_LOOKED_AT = 64  # rows of each source


@dataclass(frozen=True)
class Drawn:
    """A sequence of a run.

    Attributes:
        number: in the run, from 0.
        index: which row of the source it is.
        row: as the source gives it.
        pieces: as they are trained, some without their caption.
    """

    number: int
    source: Source
    index: int
    row: list[Piece]
    pieces: list[Piece]


class MixtureData:
    """Sequences of a run from sources that are mixed by weight.

    What sequence k holds is a pure function of the sources' content, their weights over the run so
    far, the seed and k; no layout changes it.

    Args:
        section: of the recipe.

    Attributes:
        section: with the content of every source.

    Raises:
        InputError: a source is missing, damaged, or of another context or vocabulary.
    """

    def __init__(self, section: MixtureConfig, setting: Setting):
        self._setting, self._sizes = setting, BatchSizes(setting.batch)
        sources, filled = open_sources(
            "data.sources", section.sources, setting.vocabulary, section.context, setting.group
        )
        self._columns = Columns(setting.columns)
        self._columns.check(sources)
        self._sources = {source.content: source for source in sources}
        self.section = section.model_copy(update={"sources": filled})
        self._phases = phases_of([], filled, 0)
        self._null_prompt = NullPrompt(setting.vocabulary, section.null_prompt, setting.seed)

    @property
    def grid(self) -> list[int] | None:
        """Rows and columns of the commonest image in the sources' first rows; None without any."""
        grids = Counter(
            grid
            for source in self._sources.values()
            for index in range(min(len(source), _LOOKED_AT))
            for piece in source.row(index)
            for grid in self._grids(piece)
        )
        return list(grids.most_common(1)[0][0]) if grids else None

    def _grids(self, piece: Piece) -> Iterator[tuple[int, int]]:
        with suppress(GrammarError):  # a source may cut its documents anywhere
            for meta in metas(self._setting.vocabulary, piece.tokens):
                if meta.fps is None:
                    yield meta.height, meta.width

    def state_dict(self, saved: Any = None) -> dict[str, Any]:
        """The phases of the run, the present one among them once batches were asked for; JSON."""
        return {"phases": [phase.as_json() for phase in self._phases]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a run's phases."""
        self._phases = [Phase.of_json(value) for value in state["phases"]]

    def batches(self, run: Reader, first: int, last: int) -> Iterator[list[Batch]]:
        """The micro-batches of this data parallel rank, for the steps after `first` up to `last`.

        From step `first` on the sources are those of the section: a phase of its own where they
        were others before. Closing the iterator ends the workers.

        Raises:
            InputError: the batch does not divide; or, while it goes on, the data cannot be read.
        """
        setting, mesh, place = self._setting, run.mesh, run.trainer.place
        setting.batch.check(mesh.data_size)
        begin = self._sizes.taken(first)
        self._phases = phases_of(self._phases, self.section.sources, begin)
        mixture = self._mixture(since=begin)
        builder = RowBuilder(
            setting.vocabulary,
            self.section.context,
            setting.weights,
            self.section.reset_at_documents,
            mesh.context_size,
            tuple(setting.columns),
            setting.group,
        )

        def make(numbers: Sequence[int]) -> Batch:
            batch = builder.batch([self._sequence(mixture, number).pieces for number in numbers])
            return place(batch) if place else batch

        return steps_of(
            make,
            Steps(self._sizes, first, last),
            setting.batch.micro_size,
            data_rank=mesh.data_rank,
            data_size=mesh.data_size,
            workers=self.section.workers,
        )

    def sequences_of_step(self, step: int) -> Iterator[Drawn]:
        """The sequences of a step of the run, counted from 1, over all ranks.

        Raises:
            InputError: a source of that time cannot be opened.
        """
        numbers = self._sizes.sequences(step)
        mixture = self._mixture(since=numbers.start)
        return (self._sequence(mixture, number) for number in numbers)

    def _sequence(self, mixture: PhasedMixture, number: int) -> Drawn:
        source, index = mixture[number]
        row = self._columns.attach(source, index, source.row(index))
        return Drawn(number, source, index, row, self._null_prompt(row, number))

    def _mixture(self, since: int) -> PhasedMixture:
        return PhasedMixture(self._phases, self._open, self._setting.seed, since)

    def _open(self, share: Share) -> Source:
        """The source of a share; one of an earlier phase is opened when it is asked for."""
        if share.content not in self._sources:
            section = TypeAdapter(AnySource).validate_python(share.section)
            (source,), _ = open_sources(
                "phases",
                [section],
                self._setting.vocabulary,
                self.section.context,
                self._setting.group,
            )
            self._sources[share.content] = source
        return self._sources[share.content]
