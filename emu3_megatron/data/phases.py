"""Phases of a mixture that changes within a run: each source goes on where it stopped.

A phase is a mixture from some sequence of the run on. The phases of a run lie in its checkpoints,
so what sequence k is stays a pure function of them: no source repeats a row before it has given
all. Sources are known by their content: one that moved goes on, other packs are another source.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from emu3_megatron.config.data import SourceSection
from emu3_megatron.data.mixture import Mixture, rows_given
from emu3_megatron.data.source import Source


@dataclass(frozen=True)
class Share:
    """A source in a phase.

    Attributes:
        content: by which phases know the source.
        section: of the recipe, which says how to open it; as JSON.
    """

    content: str
    weight: float
    section: dict[str, Any]

    @classmethod
    def of_section(cls, section: SourceSection) -> "Share":
        assert section.content is not None, "filled in when the source was opened"
        return cls(section.content, section.weight, section.model_dump(mode="json"))


@dataclass(frozen=True)
class Phase:
    first_sequence: int
    sources: tuple[Share, ...]

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> "Phase":
        return cls(value["first_sequence"], tuple(Share(**share) for share in value["sources"]))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def mixes(self, shares: Sequence[Share]) -> bool:
        """Whether these are its sources and weights, wherever the sources lie."""
        key = lambda of: [(share.content, share.weight) for share in of]
        return key(self.sources) == key(shares)

    def moved(self, shares: Sequence[Share]) -> "Phase":
        """The phase, its sources where these say that they lie."""
        now = {share.content: share.section for share in shares}
        section = lambda share: now.get(share.content, share.section)
        sources = tuple(replace(share, section=section(share)) for share in self.sources)
        return replace(self, sources=sources)


def phases_of(
    past: Sequence[Phase], sources: Sequence[SourceSection], sequence: int
) -> list[Phase]:
    """The phases of a run that goes on at `sequence` with these sources.

    Args:
        past: the phases so far; none for a new run.
        sources: with their content.
    """
    shares = tuple(map(Share.of_section, sources))
    past = [phase.moved(shares) for phase in past]
    if past and past[-1].mixes(shares):
        return past
    return [*(phase for phase in past if phase.first_sequence < sequence), Phase(sequence, shares)]


class PhasedMixture:
    """Which row is sequence k of a run, over all its phases.

    Args:
        phases: in order, the first from sequence 0.
        open_source: gives the source of a share.
        since: sequences before this one will not be asked for; their sources are not opened.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        open_source: Callable[[Share], Source],
        seed: int,
        since: int = 0,
    ):
        self._firsts = [phase.first_sequence for phase in phases]
        self._mixtures: list[Mixture | None] = []
        numbers: dict[str, int] = {}
        given: dict[str, int] = {}
        for phase, end in zip(phases, [*self._firsts[1:], None], strict=True):
            for share in phase.sources:
                numbers.setdefault(share.content, len(numbers))
            is_asked_for = end is None or end > since
            mixture = _mixture(phase, open_source, seed, numbers, given) if is_asked_for else None
            self._mixtures.append(mixture)
            if end is not None:
                _count(phase, end, given)

    def __getitem__(self, sequence: int) -> tuple[Source, int]:
        """The source that a sequence comes from, and which of its rows it is."""
        index = bisect_right(self._firsts, sequence) - 1
        mixture = self._mixtures[index]
        assert mixture is not None, "a sequence of a phase that was not opened"
        return mixture[sequence - self._firsts[index]]


def _mixture(
    phase: Phase,
    open_source: Callable[[Share], Source],
    seed: int,
    numbers: Mapping[str, int],
    given: Mapping[str, int],
) -> Mixture:
    return Mixture(
        [open_source(share) for share in phase.sources],
        [share.weight for share in phase.sources],
        seed,
        [numbers[share.content] for share in phase.sources],
        [given.get(share.content, 0) for share in phase.sources],
    )


def _count(phase: Phase, end: int, given: dict[str, int]) -> None:
    """Add what each source gives in a phase that ends before sequence `end`."""
    weights = [share.weight for share in phase.sources]
    counts = rows_given(weights, end - phase.first_sequence)
    for share, count in zip(phase.sources, counts, strict=True):
        given[share.content] = given.get(share.content, 0) + count
