"""Imports Megatron-LM's checkpoints as ours, and exports ours as Megatron-LM's."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emu3_megatron.config import ModelConfig
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing, sync
from emu3_megatron.interchange.megatron_lm.arguments import arguments_of, model_of
from emu3_megatron.interchange.megatron_lm.frame import GPTFrame
from emu3_megatron.interchange.megatron_lm.names import theirs
from emu3_megatron.interchange.megatron_lm.reading import RANK_FILE, TRACKER, open_checkpoint
from emu3_megatron.interchange.sharded import Frame
from emu3_megatron.interchange.weights import byte_progress
from emu3_megatron.model.tensors import is_in_vocabulary

_VERSION = 3.0  # of checkpoints since Megatron-LM's megatron-core models


class GPTImport:
    """A checkpoint of Megatron-LM, proven to be of a decoder of ours.

    Needs Megatron's groups over this one process.

    Args:
        path: from `find_iteration`.
        preset: whose vocabulary it has, if the rows of its embedding do not tell.
    """

    def __init__(self, path: Path, preset: str | None, ranks_file: Path | None):
        self._source = open_checkpoint(path)
        self.dtype = self._source.dtype
        if self.dtype not in (torch.float32, torch.bfloat16):
            raise InputError(f"{path}: its weights are {self.dtype}; give fp32 or bf16")
        arguments, rows = self._source.arguments, self._source.rows
        self.model: ModelConfig = model_of(arguments, rows, self._source.where, preset, ranks_file)
        self.max_positions = int(getattr(arguments, "max_position_embeddings", None) or 0)
        self._source.prepare(self.model)

    def write_checkpoint(self, folder: Path) -> None:
        """Write it as a checkpoint of ours, parameter by parameter, with progress."""
        frame = Frame(self.model, self.dtype)
        total = sum(meta.numel() * meta.itemsize for meta in frame.parameters.values())
        with byte_progress("import", total) as progress:

            def parameter(name: str) -> Tensor:
                tensor = self._source.parameter(name)
                if is_in_vocabulary(name):
                    tensor = with_rows(tensor, len(frame.parameters[name]))
                progress.update(tensor.nbytes)
                return tensor

            frame.write(folder, parameter)


def with_rows(table_vh: Tensor, rows: int) -> Tensor:
    """As many rows, which pad the vocabulary: those that are there as they are, then zeros."""
    kept = table_vh[:rows]
    return torch.nn.functional.pad(kept, (0, 0, 0, rows - len(kept)))


def export_gpt(
    checkpoint: Path,
    target: Path,
    model: ModelConfig,
    dtype: torch.dtype,
    max_positions: int,
    distributed: bool,
    tensor: int,
) -> None:
    """Write a checkpoint of ours as one of Megatron-LM's, under its name `release`.

    A target that ends in .pt becomes the file of torch.save alone.

    Args:
        distributed: `--ckpt-format torch_dist`; else one file of torch.save, for one rank.
        tensor: the rows of the vocabulary are padded for so many tensor parallel ranks.
    """
    rows = model.vocabulary().padded_size(tensor)
    arguments = arguments_of(model, dtype, max_positions, rows, tensor)
    common = {"args": arguments, "checkpoint_version": _VERSION, "iteration": 0}
    ours = Frame(model, dtype)
    with replacing(target) as beside:
        if target.suffix == ".pt":
            _write_file(ours, checkpoint, beside, common, rows)
            return
        folder = beside / "release"
        if distributed:
            folder.mkdir(parents=True)
            _write_distributed(ours, checkpoint, folder, common, GPTFrame(model, dtype, rows))
        else:
            (folder / "mp_rank_00").mkdir(parents=True)
            _write_file(ours, checkpoint, folder / "mp_rank_00" / RANK_FILE, common, rows)
        (beside / TRACKER).write_text("release", encoding="utf-8")


def _write_distributed(
    ours: Frame, checkpoint: Path, folder: Path, common: dict[str, Any], frame: GPTFrame
) -> None:
    total = sum(meta.numel() * meta.itemsize for meta in frame.parameters.values())
    with byte_progress("export", total) as progress:

        def parameter(name: str) -> Tensor:
            tensor = ours.read_one(checkpoint, name)
            if is_in_vocabulary(name):
                tensor = with_rows(tensor, frame.rows)
            progress.update(tensor.nbytes)
            return tensor

        frame.write(folder, parameter, common)


def _write_file(
    ours: Frame, checkpoint: Path, path: Path, common: dict[str, Any], rows: int
) -> None:
    state: dict[str, Tensor] = {}
    total = sum(meta.numel() * meta.itemsize for meta in ours.parameters.values())
    with byte_progress("export", total) as progress:
        for name, tensor in ours.read(checkpoint):
            state[theirs(name)] = with_rows(tensor, rows) if is_in_vocabulary(name) else tensor
            progress.update(tensor.nbytes)
    torch.save({**common, "model": state}, path)
    sync(path)
