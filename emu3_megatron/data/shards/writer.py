"""Writes token shards, many documents at once, with the bytes of megatron-core's builder."""

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emu3_megatron.data.shards.index import TOKEN_BYTES
from emu3_megatron.data.shards.sidecar import Content, Sidecar, shard_file, stretches
from emu3_megatron.data.shards.store import CONTEXT, TRAINED, TokenStore
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing
from emu3_megatron.grammar import Document
from emu3_megatron.vocabulary import Vocabulary

_INT32 = 4  # megatron-core's code of the dtype


class Block(NamedTuple):
    """Some documents, one after another."""

    tokens: np.ndarray  # int32 [tokens]
    lengths: np.ndarray  # of each span, int32 [spans]
    modes: np.ndarray  # of each span, int8 [spans]
    spans: np.ndarray  # of each document, int32 [documents]


def block_of(documents: Sequence[Document]) -> Block:
    """Documents as a block; empty spans are left out.

    Raises:
        InputError: a document without tokens.
    """
    spans_of = [[span for span in document.spans if len(span.tokens)] for document in documents]
    for number, spans in enumerate(spans_of):
        if not spans:
            raise InputError(f"document {number}: no tokens")
    every = [span for spans in spans_of for span in spans]
    return Block(
        tokens=np.concatenate([np.empty(0, np.int32), *(span.tokens for span in every)]),
        lengths=np.array([len(span.tokens) for span in every], np.int32),
        modes=np.array([TRAINED if span.trained else CONTEXT for span in every], np.int8),
        spans=np.array([len(spans) for spans in spans_of], np.int32),
    )


def write_shard(
    prefix: str | Path,
    vocabulary: Vocabulary,
    blocks: Iterable[Block],
    group: int | None = None,
) -> None:
    """Write blocks in order as one shard: PREFIX.bin, .json, .idx, whole, the .idx last.

    An exception leaves what was there before.

    Args:
        group: so many documents in a row belong together: 2 for pairs, document 2k the chosen one
            and 2k + 1 the rejected. They are packed together.

    Raises:
        InputError: an id outside the vocabulary, no documents, or the last group is not full.
    """
    index, data, sidecar = (shard_file(prefix, suffix) for suffix in ("idx", "bin", "json"))
    # Renamed in reverse order: .bin, .json, .idx.
    with (
        replacing(index) as new_index,
        replacing(sidecar) as new_sidecar,
        replacing(data) as new_data,
    ):
        content = Content()
        check = partial(_check_ids, prefix, vocabulary, content)
        columns = _write_tokens(new_data, blocks, content, check)
        _check_documents(prefix, len(columns[-1]), group)
        _write_index(new_index, *columns)
        new_sidecar.write_text(
            content.sidecar(new_index, vocabulary, group).to_json(), encoding="utf-8"
        )
        index.unlink(missing_ok=True)  # never an old index beside new tokens


def _write_tokens(
    path: Path, blocks: Iterable[Block], content: Content, check: Callable[[], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write the tokens; lengths and modes of all spans, and spans of all documents."""
    columns: list[tuple[np.ndarray, ...]] = [
        (np.empty(0, np.int32), np.empty(0, np.int8), np.empty(0, np.int32))
    ]
    with path.open("wb") as file:
        for tokens, *columns_of_block in blocks:
            for chunk in stretches(np.ascontiguousarray(tokens, "<i4")):
                content.add(chunk)
                file.write(chunk.data)
            check()
            columns.append(tuple(columns_of_block))
    lengths, modes, spans = (np.concatenate(column) for column in zip(*columns, strict=True))
    return lengths, modes, spans


def _check_ids(prefix: str | Path, vocabulary: Vocabulary, content: Content) -> None:
    if content.smallest < 0 or content.largest >= vocabulary.size:
        raise InputError(
            f"{prefix}: ids {content.smallest}..{content.largest} leave the vocabulary of "
            f"{vocabulary.size:,}"
        )


def _check_documents(prefix: str | Path, documents: int, group: int | None) -> None:
    if not documents:
        raise InputError(f"{prefix}: no documents to write")
    if group is not None and (group < 2 or documents % group):
        raise InputError(
            f"{prefix}: {documents:,} documents are no groups of {group}; "
            "write whole groups of 2 or more"
        )


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


def adopt(store: TokenStore) -> Sidecar:
    """The sidecar of a shard; one that Megatron wrote is read through and given its own.

    Raises:
        InputError: an id lies outside the vocabulary.
    """
    if store.sidecar is None:
        store.sidecar = store.check_all()
        _write_sidecar(store.prefix, store.sidecar)
    return store.sidecar


def relabel(prefix: str | Path, vocabulary: Vocabulary) -> None:
    """Write the sidecar of a shard anew, whose old one named another vocabulary than its tokens'.

    Every token is read; the content must be what the old sidecar tells of.

    Raises:
        InputError: the shard is damaged, or an id lies outside this vocabulary.
    """
    old = Sidecar.read(prefix)
    if old is not None and old.vocabulary != vocabulary.fingerprint():
        _write_sidecar(prefix, TokenStore(prefix, vocabulary, relabel=True).check_all())


def _write_sidecar(prefix: str | Path, sidecar: Sidecar) -> None:
    with replacing(shard_file(prefix, "json")) as path:
        path.write_text(sidecar.to_json(), encoding="utf-8")
