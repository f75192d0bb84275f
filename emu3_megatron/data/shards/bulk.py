"""Writing token shards from arrays: many documents at once, the bytes that megatron-core writes."""

import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from emu3_megatron.data.shards.index import TOKEN_BYTES
from emu3_megatron.data.shards.sidecar import Content, shard_file, stretches
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing
from emu3_megatron.vocabulary import Vocabulary

Block = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Documents: tokens int32, span lengths int32, span modes int8, spans of each document int32."""

_INT32 = 4  # megatron-core's code of the dtype


def write_shard(prefix: str | Path, vocabulary: Vocabulary, blocks: Iterable[Block]) -> None:
    """Write blocks in order as one shard: PREFIX.bin, .json, .idx, whole, the .idx last.

    Raises:
        InputError: an id outside the vocabulary, or no documents.
    """
    index, data, sidecar = (shard_file(prefix, suffix) for suffix in ("idx", "bin", "json"))
    with (
        replacing(index) as new_index,
        replacing(sidecar) as new_sidecar,
        replacing(data) as new_data,
    ):
        content = Content()
        lengths, modes, spans = _write_tokens(new_data, vocabulary, blocks, content)
        if not len(spans):
            raise InputError(f"{prefix}: no documents to write")
        _write_index(new_index, lengths, modes, spans)
        new_sidecar.write_text(content.sidecar(new_index, vocabulary).to_json())
        index.unlink(missing_ok=True)  # never an old index beside new tokens


def _write_tokens(
    path: Path, vocabulary: Vocabulary, blocks: Iterable[Block], content: Content
) -> tuple[np.ndarray, ...]:
    columns: list[tuple[np.ndarray, ...]] = [
        (np.empty(0, np.int32), np.empty(0, np.int8), np.empty(0, np.int32))
    ]
    with path.open("wb") as file:
        for tokens, *columns_of_block in blocks:
            for chunk in stretches(np.ascontiguousarray(tokens, "<i4")):
                content.add(chunk)
                file.write(chunk.data)
            if content.smallest < 0 or content.largest >= vocabulary.size:
                raise InputError(f"{path}: ids leave the vocabulary of {vocabulary.size:,}")
            columns.append(tuple(columns_of_block))
    return tuple(np.concatenate(column) for column in zip(*columns, strict=True))


def _write_index(path: Path, lengths: np.ndarray, modes: np.ndarray, spans: np.ndarray) -> None:
    pointers = np.cumsum(lengths, dtype=np.int64) - lengths
    firsts = np.concatenate([[0], np.cumsum(spans, dtype=np.int64)])
    with path.open("wb") as file:
        file.write(b"MMIDIDX\x00\x00")
        file.write(struct.pack("<QBQQ", 1, _INT32, len(lengths), len(firsts)))
        file.write(lengths.astype("<i4").tobytes())
        file.write((pointers * TOKEN_BYTES).astype("<i8").tobytes())
        file.write(firsts.astype("<i8").tobytes())
        file.write(modes.astype("i1").tobytes())
