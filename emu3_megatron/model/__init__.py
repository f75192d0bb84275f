"""The decoder, and opening it without any training code."""

from emu3_megatron.model.decoder import Decoder, Want, build_decoder, count_parameters
from emu3_megatron.model.inputs import Inputs
from emu3_megatron.model.layout import DropoutPlace, SequenceLayout

__all__ = [
    "Decoder",
    "DropoutPlace",
    "Inputs",
    "SequenceLayout",
    "Want",
    "build_decoder",
    "count_parameters",
]
