"""Shim until the data package has its own."""

from collections.abc import Iterator
from typing import Any

from emu3_megatron.config.data import PackSource, ValidationConfig
from emu3_megatron.data.batches import Batch, PackedSamples, step_batches
from emu3_megatron.data.mixed import Setting
from emu3_megatron.data.mixture import Mixture
from emu3_megatron.data.packing.pack_set import PackSet
from emu3_megatron.errors import InputError


class HeldOut:
    def __init__(self, section: ValidationConfig, context: int, setting: Setting):
        self.section, self.setting = section, setting
        sources = [source for source in section.sources if isinstance(source, PackSource)]
        packs = [PackSet(source.pack, setting.vocabulary) for source in sources]
        self.mixture = mixture = Mixture(packs, [source.weight for source in sources])
        count = section.batches * setting.batch.size
        drawn = {(source.path, pack) for source, pack in map(mixture.__getitem__, range(count))}
        if len(drawn) < count:
            raise InputError(
                f"validation.batches={section.batches} x batch.size={setting.batch.size} would "
                "read packs of validation.sources twice; lower it, or pack more held-out data"
            )

    def batches(self, run: Any) -> Iterator[list[Batch]]:
        samples = PackedSamples(
            self.mixture,
            self.setting.vocabulary,
            tuple(self.setting.weights.values()),
            True,
            run.mesh.context_size,
        )
        return step_batches(
            samples,
            global_batch=self.setting.batch.size,
            micro_batch=self.setting.batch.micro_size,
            data_rank=run.mesh.data_rank,
            data_size=run.mesh.data_size,
            first_step=0,
            last_step=self.section.batches,
            place=run.trainer.place,
        )
