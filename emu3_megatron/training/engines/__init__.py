"""Engines, which compute gradients and move weights; chosen by kind."""

from pathlib import Path
from typing import Any

from emu3_megatron.config.base import Component, build
from emu3_megatron.config.engines import DeepSpeedConfig
from emu3_megatron.training.engines.deepspeed import DeepSpeedEngine
from emu3_megatron.training.engines.deepspeed import frozen_decoder as _frozen_by_deepspeed
from emu3_megatron.training.engines.megatron import MegatronEngine
from emu3_megatron.training.engines.megatron import frozen_decoder as _frozen_by_megatron
from emu3_megatron.training.interfaces import Engine, EngineSetting

_BUILTIN = {"megatron": MegatronEngine, "deepspeed": DeepSpeedEngine}


def build_engine(section: Component, setting: EngineSetting) -> Engine:
    """The engine that a recipe names; a third party's class is called alike."""
    return build(section, _BUILTIN, setting)


def frozen_decoder(section: Component, setting: EngineSetting, checkpoint: Path) -> Any:
    """What an engine's `frozen` returns, where nothing is trained beside it.

    The built-in kinds need no engine for it, and no memory for gradients and optimizer.
    """
    if section.kind == "megatron":
        return _frozen_by_megatron(setting, checkpoint)
    if isinstance(section, DeepSpeedConfig):
        return _frozen_by_deepspeed(section, setting, checkpoint)
    return build_engine(section, setting).frozen(checkpoint)
