"""Converts the vision tokenizer: Hugging Face folders to ours, and back."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.files import write_json
from emu3_megatron.interchange.layouts import VisionNames
from emu3_megatron.interchange.weights import Spec, Weights
from emu3_megatron.vision.tokenizer import FORMAT, VisionTokenizer


class VisionTable:
    """Which tensor of a layout is which of ours; none is ever more than renamed or reshaped."""

    def __init__(self, network: TokenizerNetwork, names: VisionNames):
        with torch.device("meta"):
            tokenizer = VisionTokenizer(network)
        self.network = network
        self.ours: dict[str, Tensor] = tokenizer.state_dict()
        self._theirs = {
            names.of(ours): (ours, tensor.shape[:2] if names.is_linear(ours) else tensor.shape)
            for ours, tensor in self.ours.items()
        }

    @property
    def theirs(self) -> dict[str, torch.Size]:
        """Names and shapes in the layout."""
        return {name: shape for name, (_, shape) in self._theirs.items()}

    def import_specs(self, weights: Weights) -> dict[str, Spec]:
        """What `imported` will give."""
        return {
            ours: Spec(tuple(self.ours[ours].shape), weights.specs[theirs].dtype)
            for theirs, (ours, _) in self._theirs.items()
        }

    def imported(self, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        """Our tensors out of the layout's."""
        for theirs, (ours, _) in self._theirs.items():
            yield ours, weights[theirs].view(self.ours[ours].shape)

    def export_specs(self, weights: Weights) -> dict[str, Spec]:
        """What `exported` will give."""
        return {
            theirs: Spec(tuple(shape), weights.specs[ours].dtype)
            for theirs, (ours, shape) in self._theirs.items()
        }

    def exported(self, weights: Weights) -> Iterator[tuple[str, Tensor]]:
        """The layout's tensors out of ours."""
        for theirs, (ours, shape) in self._theirs.items():
            yield theirs, weights[ours].view(shape)


def is_tokenizer(folder: Path) -> bool:
    """Whether this is a tokenizer folder of ours."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_network(network: TokenizerNetwork, folder: Path) -> None:
    write_json(folder / "config.json", {"format": FORMAT, **network.model_dump()})
