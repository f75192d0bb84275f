"""A mixture that changes in mid-run: each source goes on where it stopped.

A phase is a mixture from some sample of the run on. The phases of a run lie in its checkpoints, so
what sample k is stays a pure function of them: no source repeats a pack before it has given all.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emu3_megatron.config.data import PackSource, SourceSection
from emu3_megatron.data.mixture import Mixture, packs_given
from emu3_megatron.data.packing.pack_set import PackSet, read_header
from emu3_megatron.errors import InputError
from emu3_megatron.vocabulary import Vocabulary


@dataclass(frozen=True)
class Share:
    """A source in a phase.

    Attributes:
        pack: path of the pack folder, by which phases recognise the source.
        content: hash of what the folder says of itself.
    """

    pack: str
    weight: float
    content: str


@dataclass(frozen=True)
class Phase:
    first_sample: int
    sources: tuple[Share, ...]

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> "Phase":
        return cls(value["first_sample"], tuple(Share(**share) for share in value["sources"]))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def phases_of(past: Sequence[Phase], sources: Sequence[SourceSection], sample: int) -> list[Phase]:
    """The phases of a run that goes on at `sample` with these sources.

    Args:
        past: the phases so far; none for a new run.

    Raises:
        InputError: a source holds other packs than when the run began to use it.
    """
    packs = [source for source in sources if isinstance(source, PackSource)]
    shares = tuple(Share(str(s.pack), s.weight, _content(s.pack)) for s in packs)
    known = {share.pack: share.content for phase in past for share in phase.sources}
    for share in shares:
        if known.get(share.pack, share.content) != share.content:
            raise InputError(
                f"{share.pack}: other packs than this run has read so far; give the new ones "
                "another name"
            )
    if past and past[-1].sources == shares:
        return list(past)
    return [*(phase for phase in past if phase.first_sample < sample), Phase(sample, shares)]


class PhasedMixture:
    """Which pack is sample k of a run, over all its phases.

    Args:
        phases: in order, the first from sample 0.
        since: samples before this one will not be asked for; their packs need not exist.

    Raises:
        InputError: packs are missing, damaged, or of another context or vocabulary.
    """

    def __init__(self, phases: Sequence[Phase], vocabulary: Vocabulary, seed: int, since: int = 0):
        self._firsts = [phase.first_sample for phase in phases]
        self._mixtures: list[Mixture | None] = []
        numbers: dict[str, int] = {}
        given: dict[str, int] = {}
        for phase, end in zip(phases, [*self._firsts[1:], None], strict=True):
            packs = [share.pack for share in phase.sources]
            weights = [share.weight for share in phase.sources]
            for pack in packs:
                numbers.setdefault(pack, len(numbers))
            mixture = None
            if end is None or end > since:
                mixture = Mixture(
                    [PackSet(pack, vocabulary) for pack in packs],
                    weights,
                    seed,
                    [numbers[pack] for pack in packs],
                    [given.get(pack, 0) for pack in packs],
                )
            self._mixtures.append(mixture)
            if end is not None:
                counts = packs_given(weights, end - phase.first_sample)
                for pack, count in zip(packs, counts, strict=True):
                    given[pack] = given.get(pack, 0) + count

    @property
    def sources(self) -> list[PackSet]:
        """Those of the last phase."""
        assert self._mixtures[-1] is not None
        return self._mixtures[-1].sources

    @property
    def context(self) -> int:
        assert self._mixtures[-1] is not None
        return self._mixtures[-1].context

    def __getitem__(self, sample: int) -> tuple[PackSet, int]:
        """The source and the number of the pack that sample `sample` of the run is."""
        index = bisect_right(self._firsts, sample) - 1
        mixture = self._mixtures[index]
        assert mixture is not None, "a sample of a phase that was not opened"
        return mixture[sample - self._firsts[index]]


def _content(pack: Path) -> str:
    header = read_header(pack)
    shards = [{**shard, "path": None} for shard in header["shards"]]  # folders may be moved
    return hashlib.sha256(json.dumps({**header, "shards": shards}).encode()).hexdigest()
