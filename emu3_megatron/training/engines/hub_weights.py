"""Weights of transformers' decoder: from a seed, a folder or a checkpoint, and to a checkpoint."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from emu3_megatron.checkpoints.state import State
from emu3_megatron.config import ModelConfig
from emu3_megatron.errors import InputError
from emu3_megatron.interchange.configs import ARCHITECTURE, HubConfig
from emu3_megatron.interchange.decoder import DecoderTable
from emu3_megatron.interchange.layouts import ALONE, find_decoder
from emu3_megatron.interchange.parameters import counterparts, fuse, split
from emu3_megatron.interchange.sharded import checkpoint_dtype
from emu3_megatron.interchange.weights import Weights
from emu3_megatron.model.initialization import draw

Named = Iterator[tuple[str, Tensor]]


class HubWeights:
    """The tensors of transformers' Emu3ForCausalLM, by its names for them.

    Needs Megatron's groups, with one tensor parallel rank.

    Args:
        dtype: of the weights of a checkpoint.
    """

    def __init__(self, model: ModelConfig, dtype: torch.dtype):
        self.model = model
        self._table = DecoderTable(model, ALONE.decoder, dtype)
        self._ours = self._table.frame.parameters

    def drawn(self, seed: int, device: torch.device) -> Named:
        """Initial weights, those that Megatron's engine draws from the same seed."""
        vocabulary, std = self.model.vocabulary(), self.model.init_std
        for name, meta in self._ours.items():
            whole = torch.ones(meta.shape, device=device)
            if meta.dim() > 1:
                whole = draw(name, meta.shape, vocabulary, std=std, seed=seed, device=device)
            yield from self._split(name, whole)

    def read(self, path: Path) -> Named:
        """Those of a Hugging Face folder, or of a checkpoint of ours."""
        if is_hub_folder(path):
            yield from self._of_folder(path)
        else:
            table = DecoderTable(self.model, ALONE.decoder, checkpoint_dtype(path))
            yield from table.exported(path)

    def _of_folder(self, folder: Path) -> Named:
        weights = Weights(folder)
        names = find_decoder(weights.specs)
        if names is None:
            raise InputError(f"{folder}: holds no decoder of Emu3")
        theirs = DecoderTable(self.model, names, self._table.dtype).theirs
        weights.require(theirs)
        for name, source in zip(self._table.theirs, theirs, strict=True):
            yield name, weights[source]

    def for_checkpoint(self, weight: Callable[[str], Tensor]) -> State:
        """What a checkpoint of ours holds of a decoder; each rank keeps its share of it.

        Args:
            weight: a whole tensor by name; asked for in one order on all ranks.
        """
        state: State = {part.unique_key: part for part in self._table.frame.objects}
        for number, (name, meta) in enumerate(self._ours.items()):
            parts = [weight(theirs) for theirs in counterparts(name, ALONE.decoder)]
            if number % dist.get_world_size() == dist.get_rank():
                whole = fuse(name, parts, self.model, meta.shape[0]).cpu().contiguous()
                pieces = self._table.frame.pieces(name, whole)
                state[name] = [replace(piece, replica_id=0) for piece in pieces]
        return state

    def _split(self, name: str, whole: Tensor) -> Named:
        parts = split(name, whole, self.model)
        return zip(counterparts(name, ALONE.decoder), parts, strict=True)


def is_hub_folder(path: Path) -> bool:
    """Whether a path is a Hugging Face folder, by its `config.json`."""
    return (path / "config.json").is_file()


def check_hub_folder(path: Path, model: ModelConfig) -> dict[str, Any]:
    """What a checkpoint's manifest would say of a folder.

    Raises:
        InputError: the folder does not hold this very model.
    """
    config = HubConfig(path)
    theirs = config.decoder(model.ranks_file)
    for field in ARCHITECTURE:
        if getattr(theirs, field) != getattr(model, field):
            raise InputError(
                f"run.init_from={path}: another model: model.{field} is {getattr(theirs, field)} "
                f"there and {getattr(model, field)} in the recipe"
            )
    return {
        "imported_from": str(path),
        "max_positions": config.max_positions(),
        "image_area": config.image_area(),
    }
