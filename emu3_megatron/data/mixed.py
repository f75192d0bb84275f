"""Shim until the data package has its own."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from emu3_megatron.config.data import MixtureConfig, PackSource
from emu3_megatron.config.training import BatchConfig
from emu3_megatron.data.batches import Batch, PackedSamples, step_batches
from emu3_megatron.data.phases import Phase, PhasedMixture, _content, phases_of
from emu3_megatron.errors import InputError
from emu3_megatron.vocabulary import Vocabulary


@dataclass(frozen=True)
class Setting:
    vocabulary: Vocabulary
    batch: BatchConfig
    seed: int
    weights: Mapping[str, float]
    place: Callable[[Batch], Batch] | None = None


class MixtureData:
    def __init__(self, section: MixtureConfig, setting: Setting):
        sources = []
        for source in section.sources:
            assert isinstance(source, PackSource)
            sources.append(source.model_copy(update={"content": _content(source.pack)}))
        self.section = section.model_copy(update={"sources": sources})
        self.setting = setting
        self.phases: list[Phase] = []
        self._mixture(phases_of([], sources, 0), 0)

    def _mixture(self, phases: list[Phase], since: int) -> PhasedMixture:
        mixture = PhasedMixture(phases, self.setting.vocabulary, self.setting.seed, since)
        for source in mixture.sources:
            if source.context != self.section.context:
                raise InputError(
                    f"{source.path}: packed for a context of {source.context:,}, data.context is "
                    f"{self.section.context:,}; pack again or change the recipe"
                )
        return mixture

    def state_dict(self, saved: Any = None) -> dict[str, Any]:
        return {"phases": [phase.as_json() for phase in self.phases]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.phases = [Phase.of_json(value) for value in state["phases"]]

    def batches(self, run: Any, first: int, last: int) -> Iterator[list[Batch]]:
        sample = first * self.setting.batch.size
        self.phases = phases_of(self.phases, self.section.sources, sample)
        samples = PackedSamples(
            self._mixture(self.phases, sample),
            self.setting.vocabulary,
            tuple(self.setting.weights.values()),
            self.section.reset_at_documents,
            run.mesh.context_size,
        )
        return step_batches(
            samples,
            global_batch=self.setting.batch.size,
            micro_batch=self.setting.batch.micro_size,
            data_rank=run.mesh.data_rank,
            data_size=run.mesh.data_size,
            first_step=first,
            last_step=last,
            workers=self.section.workers,
            place=run.trainer.place,
        )
