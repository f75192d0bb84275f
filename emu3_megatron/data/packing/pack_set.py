"""Opening a pack folder: the pieces that make each training sequence."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.errors import InputError
from emu3_megatron.vocabulary import Vocabulary

FORMAT = "emu3-megatron/packs/1"
_SCAN = 1 << 24  # tokens looked at while opening all shards of a pack
DTYPES = {"offsets": np.int64, "documents": np.int64, "starts": np.int32, "lengths": np.int32}


class Piece(NamedTuple):
    """A stretch of a document inside a pack."""

    store: TokenStore
    document: int  # inside its shard
    start: int
    length: int


class PackSet:
    """An opened pack folder with its shards; it can be forked and pickled.

    Args:
        path: NAME.pack.
        vocabulary: the one its shards were written with.

    Attributes:
        context: tokens a pack takes.
        stores: its shards, in order.

    Raises:
        InputError: the folder is missing or damaged, or its shards are other ones by now.
    """

    def __init__(self, path: str | Path, vocabulary: Vocabulary):
        self.path = Path(path)
        header = read_header(self.path)
        self.context: int = header["context"]
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

    def __len__(self) -> int:
        """Number of packs."""
        return len(self._arrays["offsets"]) - 1

    def pieces(self, pack: int) -> list[Piece]:
        """What a pack is made of, in order."""
        begin, end = self._arrays["offsets"][pack : pack + 2]
        documents, starts, lengths = (
            self._arrays[name][begin:end] for name in ("documents", "starts", "lengths")
        )
        shards = np.searchsorted(self._firsts, documents, "right") - 1
        inside = documents - self._firsts[shards]
        columns = (array.tolist() for array in (shards, inside, starts, lengths))
        return [Piece(self.stores[shard], *piece) for shard, *piece in zip(*columns, strict=True)]

    def check_all(self) -> None:
        """Read everything: every token, and that packs hold each token exactly once.

        Raises:
            InputError: names the shard or the pack folder.
        """
        for store in self.stores:
            store.check_all()
        documents, starts, lengths = (
            self._arrays[name] for name in ("documents", "starts", "lengths")
        )
        order = np.lexsort((starts, documents))
        ends = np.cumsum(lengths[order], dtype=np.int64)
        firsts = np.cumsum([0, *np.concatenate([s.document_lengths for s in self.stores])])
        sizes = np.add.reduceat(lengths, self._arrays["offsets"][:-1], dtype=np.int64)
        begins = firsts[documents[order]] + starts[order]
        if (
            sizes.max() > self.context
            or ends[-1] != firsts[-1]
            or not np.array_equal(begins, ends - lengths[order])
        ):
            raise InputError(
                f"{self.path}: does not hold every token of its shards once; run emu3 pack again"
            )

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


def first_documents(stores: list[TokenStore]) -> np.ndarray:
    """Number of each shard's first document, then of all documents, int64 [shards + 1]."""
    return np.cumsum([0, *map(len, stores)])


def read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads((path / "pack.json").read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no packs there; make them with emu3 pack") from None
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
        prefix = Path(os.path.normpath(path.resolve() / shard["path"]))
        store = TokenStore(prefix, vocabulary, _SCAN // len(shards))
        if store.sidecar is None or store.sidecar.content != shard["content"]:
            raise InputError(f"{path}: made from other shards than {prefix}; run emu3 pack again")
        stores.append(store)
    return stores


def _map_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r").view(np.ndarray)
    except (OSError, ValueError):
        raise InputError(f"{path}: missing or damaged; run emu3 pack again") from None
