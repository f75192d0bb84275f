"""Converts the decoder: Hugging Face tensors to a Megatron checkpoint, and back."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from emu3_megatron.config import ModelConfig
from emu3_megatron.interchange.layouts import DecoderNames
from emu3_megatron.interchange.parameters import counterparts, fuse, split
from emu3_megatron.interchange.sharded import Frame
from emu3_megatron.interchange.weights import Spec, Weights, byte_progress


class DecoderTable:
    """Which tensors of a layout make up which parameter of ours.

    Needs Megatron's groups over this one process.
    """

    def __init__(self, model: ModelConfig, names: DecoderNames, dtype: torch.dtype):
        self.model = model
        self.names = names
        self.dtype = dtype
        self.frame = Frame(model, dtype)

    @cached_property
    def theirs(self) -> dict[str, torch.Size]:
        """Names and shapes in the layout, in the order in which `exported` gives them."""
        return {
            theirs: tensor.shape
            for name, meta in self.frame.parameters.items()
            for theirs, tensor in self._split(name, meta)
        }

    def export_specs(self) -> dict[str, Spec]:
        """What `exported` will give."""
        return {name: Spec(tuple(shape), self.dtype) for name, shape in self.theirs.items()}

    def write_checkpoint(self, weights: Weights, folder: Path) -> None:
        """Write the layout's tensors as a checkpoint, parameter by parameter, with progress."""
        total = sum(p.numel() * self.dtype.itemsize for p in self.frame.parameters.values())
        with byte_progress("import", total) as progress:

            def parameter(name: str) -> Tensor:
                rows = self.frame.parameters[name].shape[0]
                parts = [weights[theirs] for theirs in counterparts(name, self.names)]
                tensor = fuse(name, parts, self.model, rows)
                progress.update(tensor.nbytes)
                return tensor

            self.frame.write(folder, parameter)

    def exported(self, checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
        """The layout's tensors out of a checkpoint."""
        for name, tensor in self.frame.read(checkpoint):
            yield from self._split(name, tensor)

    def _split(self, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        parts = split(name, tensor, self.model)
        return zip(counterparts(name, self.names), parts, strict=True)
