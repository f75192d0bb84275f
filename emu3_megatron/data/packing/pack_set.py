"""Reads a pack folder as a source: the pieces that make each training sequence."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from emu3_megatron import progress
from emu3_megatron.config.prepare import Select
from emu3_megatron.data.groups import check_prompts
from emu3_megatron.data.mapping import map_array
from emu3_megatron.data.packing.selection import selected
from emu3_megatron.data.shards.sidecar import shard_file
from emu3_megatron.data.shards.store import CONTEXT, TokenStore
from emu3_megatron.data.source import Piece
from emu3_megatron.errors import InputError
from emu3_megatron.vocabulary import Vocabulary

FORMAT = "emu3-megatron/packs/1"
_SCAN = 1 << 24  # tokens looked at while opening all shards of a pack
DTYPES = {"offsets": np.int64, "documents": np.int64, "starts": np.int32, "lengths": np.int32}


class PackSet:
    """An opened pack folder with its shards: a source. It can be forked and pickled.

    Args:
        path: NAME.pack.
        vocabulary: the one its shards were written with.

    Attributes:
        context: tokens a pack takes.
        content: hash of pack.json without the paths of its shards: folders may move.
        select: which documents of the shards it holds, by layout.
        stores: its shards, in order.

    Raises:
        InputError: the folder is missing or damaged, or its shards are other ones by now.
    """

    def __init__(self, path: str | Path, vocabulary: Vocabulary):
        self.path = Path(path)
        header = read_header(self.path)
        self.context: int = header["context"]
        self.content = _content(header)
        self.select: Select = header.get("select", "all")
        self.stores = _open_shards(self.path, header["shards"], vocabulary)
        self._firsts = first_documents(self.stores)
        self._map()
        self._check_arrays(header["packs"], header["pieces"])

    def _map(self) -> None:
        self._arrays = {name: _map_array(self.path / f"{name}.npy") for name in DTYPES}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_arrays"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    @property
    def group(self) -> int | None:
        """So many documents in a row belong together: 2 for pairs. None: each stands alone."""
        return self.stores[0].group

    def __str__(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        """Number of packs."""
        return len(self._arrays["offsets"]) - 1

    def row(self, index: int) -> list[Piece]:
        """What a pack is made of, in order.

        Raises:
            InputError: an id outside the vocabulary.
        """
        begin, end = self._arrays["offsets"][index : index + 2]
        documents, starts, lengths = (
            self._arrays[name][begin:end] for name in ("documents", "starts", "lengths")
        )
        shards = np.searchsorted(self._firsts, documents, "right") - 1
        inside = documents - self._firsts[shards]
        columns = (array.tolist() for array in (shards, inside, starts, lengths))
        return [_piece(self.stores[shard], *rest) for shard, *rest in zip(*columns, strict=True)]

    def check_all(self) -> None:
        """Read everything: every token, and that packs hold each selected token exactly once.

        Raises:
            InputError: names the shard or the pack folder.
        """
        for store in self.stores:
            store.check_all()
            if store.group:
                check_prompts(store, needed=False)
        if not (self._holds_every_token_once() and self._holds_groups_side_by_side()):
            raise InputError(
                f"{self.path}: does not hold every document of its shards once; run emu3 pack again"
            )

    def _holds_every_token_once(self) -> bool:
        documents, starts, lengths = (
            self._arrays[name] for name in ("documents", "starts", "lengths")
        )
        taken = np.concatenate([selected(store, self.select) for store in self.stores])
        expected = np.concatenate([store.document_lengths for store in self.stores]) * taken
        order = np.lexsort((starts, documents))
        ends = np.cumsum(lengths[order], dtype=np.int64)
        firsts = np.cumsum([0, *expected])
        sizes = np.add.reduceat(lengths, self._arrays["offsets"][:-1], dtype=np.int64)
        begins = firsts[documents[order]] + starts[order]
        return bool(
            taken[documents].all()
            and sizes.max() <= self.context
            and ends[-1] == firsts[-1]
            and np.array_equal(begins, ends - lengths[order])
        )

    def _holds_groups_side_by_side(self) -> bool:
        group = self.group
        if group is None:
            return True
        documents, offsets = self._arrays["documents"], self._arrays["offsets"]
        if np.any(offsets % group):
            return False
        of_groups = documents.reshape(-1, group)
        shards = np.searchsorted(self._firsts, of_groups[:, 0], "right") - 1
        inside = of_groups - self._firsts[shards][:, None]
        firsts = inside[:, :1] // group * group
        return bool(np.array_equal(inside, firsts + np.arange(group)))

    def _check_arrays(self, packs: int, pieces: int) -> None:
        for name, dtype in DTYPES.items():
            array, expected = self._arrays[name], packs + 1 if name == "offsets" else pieces
            if array.dtype != dtype or array.shape != (expected,):
                raise InputError(
                    f"{self.path / name}.npy: {array.dtype} {list(array.shape)}, expected "
                    f"{np.dtype(dtype)} [{expected}]; run emu3 pack again"
                )
        offsets = self._arrays["offsets"]
        if offsets[0] != 0 or offsets[-1] != pieces or np.any(offsets[1:] <= offsets[:-1]):
            raise InputError(
                f"{self.path / 'offsets.npy'}: its numbers contradict each other; "
                "run emu3 pack again"
            )


def _piece(store: TokenStore, document: int, start: int, length: int) -> Piece:
    group, side = (None, None) if store.group is None else divmod(document, store.group)
    return Piece(
        tokens=store.read(document, start, length),
        context=_is_context(store, document, start, length) if store.has_context else None,
        source=store.name,
        document=document,
        start=start,
        group=group,
        side=side,
    )


def _is_context(store: TokenStore, document: int, start: int, length: int) -> np.ndarray:
    """Which tokens of a piece are context, bool [length]."""
    lengths, modes = store.spans(document)
    return np.repeat(modes == CONTEXT, lengths)[start : start + length]


def first_documents(stores: list[TokenStore]) -> np.ndarray:
    """Number of each shard's first document, then of all documents, int64 [shards + 1]."""
    return np.cumsum([0, *map(len, stores)])


def read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads((path / "pack.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        seen_from = "" if path.is_absolute() else f", seen from {Path.cwd()}"
        raise InputError(f"{path}: no packs there{seen_from}; make them with emu3 pack") from None
    except (OSError, ValueError):
        raise InputError(f"{path}/pack.json: damaged; run emu3 pack again") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(
            f"{path}/pack.json: not {FORMAT}; name a folder that emu3 pack or emu3 prepare made"
        )
    if missing := {"context", "vocabulary", "packs", "pieces", "shards"} - header.keys():
        raise InputError(
            f"{path}/pack.json: {', '.join(sorted(missing))} missing; run emu3 pack again"
        )
    return header


def _open_shards(
    path: Path, shards: list[dict[str, Any]], vocabulary: Vocabulary
) -> list[TokenStore]:
    stores = []
    for shard in shards:
        progress.mark()
        prefix = Path(os.path.normpath(path.resolve() / shard["path"]))
        if not shard_file(prefix, "idx").is_file():
            raise InputError(
                f"{path}: its shard is missing: expected at {prefix}, which is {shard['path']} "
                "from the packs; move both together, or run emu3 pack again"
            )
        store = TokenStore(prefix, vocabulary, _SCAN // len(shards))
        made_from = (shard["content"], shard.get("group"))
        if store.sidecar is None or (store.sidecar.content, store.group) != made_from:
            raise InputError(f"{path}: made from other shards than {prefix}; run emu3 pack again")
        stores.append(store)
    return stores


def _content(header: dict[str, Any]) -> str:
    shards = [{**shard, "path": None} for shard in header["shards"]]  # folders may be moved
    return hashlib.sha256(json.dumps({**header, "shards": shards}).encode()).hexdigest()


def _map_array(path: Path) -> np.ndarray:
    try:
        return map_array(path)
    except (OSError, ValueError):
        raise InputError(f"{path}: missing or damaged; run emu3 pack again") from None
