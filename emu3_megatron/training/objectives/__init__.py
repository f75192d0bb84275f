"""Objectives, which are minimised; chosen by kind."""

from emu3_megatron.config.base import Component, build
from emu3_megatron.training.interfaces import Objective
from emu3_megatron.training.objectives.dpo import Dpo
from emu3_megatron.training.objectives.next_token import NextToken
from emu3_megatron.vocabulary import Vocabulary

_BUILTIN = {"next_token": NextToken, "dpo": Dpo}


def build_objective(section: Component, vocabulary: Vocabulary) -> Objective:
    """The objective that a recipe names; a third party's class is called alike."""
    return build(section, _BUILTIN, vocabulary)
