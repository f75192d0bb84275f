"""Engines, which compute gradients and move weights; chosen by kind."""

from emu3_megatron.config.base import Component, build
from emu3_megatron.training.engines.megatron import MegatronEngine
from emu3_megatron.training.interfaces import Engine, EngineSetting

_BUILTIN = {"megatron": MegatronEngine}


def build_engine(section: Component, setting: EngineSetting) -> Engine:
    """The engine that a recipe names; a third party's class is called alike."""
    return build(section, _BUILTIN, setting)
