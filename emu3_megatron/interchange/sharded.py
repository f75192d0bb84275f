"""Reads and writes Megatron checkpoints of a decoder a parameter at a time.

Megatron says where in a checkpoint each parameter lies (`sharded_state_dict` of a decoder without
data); torch's own writer then asks for one piece after the other. `dist_checkpointing.save` would
want the whole model in memory.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensorFactory
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from emu3_megatron.checkpoints.saving import write_common
from emu3_megatron.checkpoints.state import stored_tensors
from emu3_megatron.config import ModelConfig
from emu3_megatron.errors import InputError
from emu3_megatron.model.decoder import empty_decoder
from emu3_megatron.model.opening import sharded_weights
from emu3_megatron.model.tensors import HEAD, named_tensors

Place: TypeAlias = ShardedTensor | ShardedTensorFactory
_AT_ONCE = 2**28  # bytes that torch copies to write or to read them; only two tables are larger


class Frame:
    """A decoder without data: names, shapes and places of its parameters.

    Needs Megatron's groups over this one process.

    Attributes:
        parameters: by name, on the meta device.
        places: where a checkpoint holds each.
        objects: what it holds besides them.
    """

    def __init__(self, model: ModelConfig, dtype: torch.dtype = torch.float32):
        decoder = empty_decoder(model, bf16=dtype == torch.bfloat16)
        state = sharded_weights(decoder)
        self.parameters: dict[str, Tensor] = dict(named_tensors(decoder))
        self.places: dict[str, Place] = {name: state[name] for name in self.parameters}
        self.objects = [part for part in state.values() if isinstance(part, ShardedObject)]

    def pieces(self, name: str, tensor: Tensor) -> list[ShardedTensor]:
        """The pieces in which a checkpoint holds a parameter, cut out of `tensor`."""
        place = replace(self.places[name], data=tensor)
        return place.build() if isinstance(place, ShardedTensorFactory) else [place]

    def write(
        self,
        folder: Path,
        parameter: Callable[[str], Tensor],
        common: dict[str, Any] | None = None,
    ) -> None:
        """Write a checkpoint of these parameters into `folder`; each is asked for once.

        Args:
            common: what it holds besides tensors.
        """
        write_common(folder, common or {})
        writer = dcp.FileSystemWriter(folder, single_file_per_rank=True, thread_count=1)
        planner = _OneByOne(self, parameter)
        try:
            dcp.save({}, storage_writer=writer, planner=planner)
        except CheckpointException as failed:  # no Exception; of whatever failed on each rank
            error, _ = next(iter(failed.failures.values()))
            raise error from None

    def read(self, path: Path) -> Iterator[tuple[str, Tensor]]:
        """Every parameter of a checkpoint, of any tensor parallel size, one after the other."""
        stored = stored_tensors(path)
        for name in self.parameters:
            yield name, self.read_one(path, name, stored)

    def read_one(
        self, path: Path, name: str, stored: dict[str, TensorStorageMetadata] | None = None
    ) -> Tensor:
        """A parameter of a checkpoint.

        Args:
            stored: what `stored_tensors` says of the checkpoint, if the caller knows it.
        """
        meta = self.parameters[name]
        stored = stored_tensors(path) if stored is None else stored
        key = self.pieces(name, meta)[0].key
        if key not in stored:
            raise InputError(f"{path}: holds no {key}; is it a checkpoint of this model?")
        tensor = torch.empty(meta.shape, dtype=stored[key].properties.dtype)
        planner = _PiecesOf(self.pieces(name, tensor))  # views of the tensor
        with warnings.catch_warnings():  # that it reads without the other processes
            warnings.simplefilter("ignore", UserWarning)
            reader = dcp.FileSystemReader(path)
            dcp.load({}, storage_reader=reader, planner=planner, no_dist=True)
        return tensor


def checkpoint_dtype(path: Path) -> torch.dtype:
    """The dtype of a checkpoint's weights."""
    return stored_tensors(path)[HEAD].properties.dtype


def _chunk(piece: ShardedTensor) -> ChunkStorageMetadata:
    """Where a piece lies in its whole; Megatron stacks the layers of a kind."""
    stacked = (1,) * piece.prepend_axis_num
    return ChunkStorageMetadata(
        torch.Size(piece.global_offset), torch.Size(stacked + piece.local_shape)
    )


class _PiecesOf(DefaultLoadPlanner):
    """Reads a few pieces, in place.

    Megatron's own loading takes all layers of a kind at once, or none.
    """

    def __init__(self, pieces: Sequence[ShardedTensor]):
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._targets = {
            MetadataIndex(piece.key, _chunk(piece).offsets): piece.data.view(_chunk(piece).sizes)
            for piece in pieces
        }
        self._pieces = pieces

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        items: list[ReadItem] = []
        for piece in self._pieces:
            about = self.metadata.state_dict_metadata[piece.key]
            assert isinstance(about, TensorStorageMetadata)
            items += create_read_items_for_chunk_list(piece.key, about, [_chunk(piece)])
        return LoadPlan(items)

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        target = self._targets[read_item.dest_index]
        for axis, (start, length) in enumerate(
            zip(read_item.dest_offsets, read_item.lengths, strict=True)
        ):
            target = target.narrow(axis, start, length)
        return target

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """It was read in place."""


class _OneByOne(DefaultSavePlanner):
    """Plans a checkpoint from shapes alone and makes its data when the writer asks for them."""

    def __init__(self, frame: Frame, parameter: Callable[[str], Tensor]):
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._items: list[WriteItem] = []
        self._data: dict[MetadataIndex, Callable[[], Any]] = {}
        # The pieces of one parameter are asked for in turn.
        pieces_of = lru_cache(1)(lambda name: frame.pieces(name, parameter(name)))
        for part in frame.objects:
            self._add_object(part)
        for name, meta in frame.parameters.items():
            for i, piece in enumerate(frame.pieces(name, meta)):
                self._add_tensor(piece, partial(_nth, pieces_of, name, i))

    def _add_object(self, part: ShardedObject) -> None:
        content = io.BytesIO()
        torch.save([part.data], content)  # a list, as Megatron writes it
        index = MetadataIndex(part.unique_key)
        self._items.append(WriteItem(index, WriteItemType.BYTE_IO))
        self._data[index] = lambda: content

    def _add_tensor(self, piece: ShardedTensor, data: Callable[[], ShardedTensor]) -> None:
        """A piece in chunks of whole rows, as if as many tensor parallel ranks had written it."""
        count, *row = piece.local_shape
        step = max(1, _AT_ONCE // (torch.Size(row).numel() * piece.dtype.itemsize))
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            self._add_rows(piece, rows, partial(_rows_of, data, rows))

    def _add_rows(self, piece: ShardedTensor, rows: slice, data: Callable[[], Tensor]) -> None:
        chunk = _chunk(piece)
        axis = piece.prepend_axis_num
        offsets, sizes = list(chunk.offsets), list(chunk.sizes)
        offsets[axis] += rows.start
        sizes[axis] = rows.stop - rows.start
        about = TensorWriteData(
            chunk=ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)),
            properties=TensorProperties(dtype=piece.dtype),
            size=torch.Size(piece.global_shape),
        )
        index = MetadataIndex(piece.key, torch.Size(offsets))
        self._items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=about))
        self._data[index] = lambda: data().view(sizes)

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan(self._items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        return self._data[write_item.index]()


def _nth(pieces_of: Callable[[str], list[ShardedTensor]], name: str, i: int) -> ShardedTensor:
    return pieces_of(name)[i]


def _rows_of(data: Callable[[], ShardedTensor], rows: slice) -> Tensor:
    """Cloned where they are a view: torch would save all that they are a view of."""
    tensor = data().data[rows]
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole and tensor.is_contiguous() else tensor.clone()
