"""The .idx file of a token shard, in the layout of Megatron's indexed datasets (docs/format.md)."""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emu3_megatron.data.mapping import map_file
from emu3_megatron.errors import InputError

TOKEN_BYTES = 4
_MAGIC = b"MMIDIDX\x00\x00"
_INT32 = 4  # Megatron's code of the dtype
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype, sequences, documents + 1


@dataclass(frozen=True)
class Index:
    """Which tokens of the .bin file belong to which document, memory-mapped.

    A document is a run of sequences; a sequence is one span of one role.
    """

    lengths: np.ndarray  # int32 [sequences], in tokens
    pointers: np.ndarray  # int64 [sequences], where each begins, in bytes
    first_sequences: np.ndarray  # int64 [documents + 1]
    modes: np.ndarray  # int8 [sequences], 0 trained, 1 context

    @property
    def num_tokens(self) -> int:
        return int(self.pointers[-1]) // TOKEN_BYTES + int(self.lengths[-1])


def map_index(path: Path) -> Index:
    """Memory-map an index. `check_index` must once have found it valid.

    Files that Megatron wrote without modes are all trained.
    """
    buffer = map_file(path)
    *_, sequences, ends = _HEADER.unpack(buffer[: _HEADER.size].tobytes())
    lengths, offset = _array(buffer, np.int32, sequences, _HEADER.size)
    pointers, offset = _array(buffer, np.int64, sequences, offset)
    first_sequences, offset = _array(buffer, np.int64, ends, offset)
    if offset == buffer.size:
        modes = np.zeros(sequences, np.int8)
    else:
        modes, _ = _array(buffer, np.int8, sequences, offset)
    return Index(lengths, pointers, first_sequences, modes)


def _array(buffer: np.ndarray, dtype: type, count: int, offset: int) -> tuple[np.ndarray, int]:
    array: np.ndarray = np.frombuffer(buffer, dtype, count, offset)
    return array, offset + array.nbytes


def check_index(path: Path) -> None:
    """Find out whether an index can be trusted.

    Raises:
        InputError: missing, of another kind or size, or its numbers contradict each other.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; a shard is named without .idx and .bin")
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise InputError(f"{path}: not the index of a token shard; make the shard anew")
    _, version, dtype, sequences, ends = _HEADER.unpack(header)
    if (version, dtype) != (1, _INT32):
        raise InputError(
            f"{path}: version {version} with dtype code {dtype}, expected version 1 with int32 "
            f"(code {_INT32}); write the shard with dtype int32"
        )
    if sequences < 1 or ends < 2:
        raise InputError(f"{path}: holds no documents; leave the shard out")
    _check_size(path, sequences, ends)
    index = map_index(path)
    if not _is_consistent(index):
        raise InputError(f"{path}: its numbers contradict each other; copy it again")
    _check_modes(path, index.modes)


def _check_modes(path: Path, modes: np.ndarray) -> None:
    unknown = np.flatnonzero((modes != 0) & (modes != 1))
    if len(unknown):
        first = int(unknown[0])
        raise InputError(
            f"{path}: sequence {first} has mode {modes[first]}, known are 0 (trained) and 1 "
            "(context); write the shard with these modes"
        )


def _check_size(path: Path, sequences: int, ends: int) -> None:
    without_modes = _HEADER.size + 12 * sequences + 8 * ends
    expected = without_modes + sequences
    if (actual := path.stat().st_size) not in (without_modes, expected):
        raise InputError(
            f"{path}: {actual:,} bytes, expected {expected:,} for {sequences:,} sequences; "
            "copy it again or make the shard anew"
        )


def _is_consistent(index: Index) -> bool:
    """Lengths, pointers and document borders agree."""
    ends = index.pointers + index.lengths.astype(np.int64) * TOKEN_BYTES
    borders = index.first_sequences
    return bool(
        index.pointers[0] == 0
        and index.lengths.min() >= 0
        and np.array_equal(index.pointers[1:], ends[:-1])
        and borders[0] == 0
        and borders[-1] == len(index.lengths)
        and np.all(borders[:-1] <= borders[1:])  # Megatron writes documents without sequences
    )
