from emu3_megatron.model.decoder import Decoder, Targets, build_decoder, count_parameters
from emu3_megatron.model.layout import DropoutPlace, KVCache, SequenceLayout

__all__ = [
    "Decoder",
    "DropoutPlace",
    "KVCache",
    "SequenceLayout",
    "Targets",
    "build_decoder",
    "count_parameters",
]
