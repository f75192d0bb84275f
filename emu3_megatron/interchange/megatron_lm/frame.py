"""Where a distributed checkpoint of Megatron-LM's GPTModel holds the tensors of our decoder."""

from dataclasses import replace

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from torch import Tensor

from emu3_megatron.config import ModelConfig
from emu3_megatron.interchange.megatron_lm.names import fused, theirs
from emu3_megatron.interchange.sharded import Frame
from emu3_megatron.model.tensors import is_in_vocabulary


class GPTFrame(Frame):
    """The decoder as GPTModel holds it: other keys, and other rows that pad the vocabulary.

    Args:
        rows: of embedding and head.
        stacked: the layers of a kind are one tensor, as Megatron-LM writes them by default.
    """

    def __init__(self, model: ModelConfig, dtype: torch.dtype, rows: int, stacked: bool = True):
        super().__init__(model, dtype)
        self.rows = rows
        self._stacked = stacked
        for name in filter(is_in_vocabulary, self.parameters):
            width = self.parameters[name].shape[1]
            self.parameters[name] = torch.empty(rows, width, dtype=dtype, device="meta")
            place = self.places[name]
            assert isinstance(place, ShardedTensor)
            self.places[name] = replace(
                place, local_shape=(rows, width), global_shape=(rows, width)
            )
        self.objects = [replace(part, key=theirs(part.key)) for part in self.objects]

    def pieces(self, name: str, tensor: Tensor) -> list[ShardedTensor]:
        return [self._renamed(piece) for piece in super().pieces(name, tensor)]

    def _renamed(self, piece: ShardedTensor) -> ShardedTensor:
        key = fused(theirs(piece.key))
        if self._stacked or not piece.prepend_axis_num:
            return replace(piece, key=key)
        layer = piece.global_offset[0]
        return replace(
            piece,
            key=key.replace("decoder.layers.", f"decoder.layers.{layer}.", 1),
            global_shape=piece.global_shape[1:],
            global_offset=piece.global_offset[1:],
            axis_fragmentations=piece.axis_fragmentations and piece.axis_fragmentations[1:],
            prepend_axis_num=0,
        )
