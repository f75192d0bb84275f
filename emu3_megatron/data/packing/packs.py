"""Writes pack folders: NAME.pack/ says which pieces of which documents make each sequence."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from emu3_megatron.config.prepare import Select
from emu3_megatron.data.packing.pack_set import DTYPES, FORMAT, PackSet, first_documents
from emu3_megatron.data.packing.packing import Packing, pack_pieces
from emu3_megatron.data.packing.pieces import Pieces, documents_of_groups, pieces_of
from emu3_megatron.data.packing.selection import selected
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.data.shards.writer import adopt
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing, sync
from emu3_megatron.vocabulary import Vocabulary

__all__ = ["PackReport", "PackSet", "pack_shards"]


@dataclass(frozen=True)
class PackReport:
    """What packing came to.

    Attributes:
        cuts: places where a document was cut.
        fill: tokens over context, 0 to 1.
        bound: packs that no packing of uncut documents can do without.
    """

    packs: int
    documents: int
    tokens: int
    cuts: int
    fill: float
    bound: int

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents, {self.tokens:,} tokens in {self.packs:,} packs: "
            f"{self.fill:.2%} full, {self.cuts:,} cuts inside text; "
            f"without cuts at least {self.bound:,} packs"
        )


def pack_shards(
    prefixes: Sequence[str | Path],
    out: str | Path,
    context: int,
    *,
    vocabulary: Vocabulary,
    select: Select = "all",
    seed: int = 0,
    max_documents: int = 256,
    cut_text: bool = True,
) -> PackReport:
    """Pack shards into training sequences; the same arguments make the same packs.

    Shards that Megatron wrote are read through once and given a sidecar. Groups of documents stay
    whole and side by side; a pack folder takes shards of one size of group, or of none.

    Args:
        prefixes: of the shards, in order.
        out: the folder to write, `NAME.pack`.
        context: tokens a sequence.
        select: which documents, by their layout.
        seed: which equally long documents go together, and the order of the packs.
        max_documents: documents a sequence takes at most.
        cut_text: cut text documents to fill the gaps that images and clips leave. Without it only
            documents longer than the context are cut.

    Raises:
        InputError: a shard cannot be used, an image, clip or group is longer than the context,
            there is nothing to pack, or `out` is a folder of something else.
    """
    _refuse_other_folder(Path(out))
    stores = [TokenStore(prefix, vocabulary) for prefix in prefixes]
    settings: dict[str, Any] = {"seed": seed, "max_documents": max_documents, "cut_text": cut_text}
    packing = _pack(stores, _pieces(stores, context, select), context, settings)
    if select != "all":
        settings = {"select": select, **settings}
    _write(Path(out), packing, stores, settings)
    documents = len(np.unique(packing.pieces.documents))
    return PackReport(
        packs=len(packing),
        documents=documents,
        tokens=int(packing.pieces.lengths.sum(dtype=np.int64)),
        cuts=len(packing.pieces) - documents,
        fill=packing.fill,
        bound=packing.bound,
    )


class NothingToPackError(InputError):
    """No document is selected."""


def _refuse_other_folder(out: Path) -> None:
    """Packs replace packs, whole or damaged, and nothing else."""
    ours = {"pack.json", *(f"{name}.npy" for name in DTYPES)}
    if out.is_dir() and (others := sorted({path.name for path in out.iterdir()} - ours)):
        raise InputError(
            f"{out}: exists and is no folder of packs, it holds {others[0]}; choose another"
        )


def _pieces(stores: list[TokenStore], context: int, select: Select) -> Pieces:
    pieces = Pieces.concatenate(
        [
            pieces_of(store, context, first, selected(store, select))
            for store, first in zip(stores, first_documents(stores).tolist(), strict=False)
        ]
    )
    if not len(pieces):
        names = ", ".join(store.name for store in stores)
        raise NothingToPackError(f"{names}: no document is of the layout {select}; select others")
    return pieces


def _pack(
    stores: list[TokenStore], pieces: Pieces, context: int, settings: dict[str, Any]
) -> Packing:
    """Pack pieces, or groups of documents as one piece each."""
    group = _group(stores)
    if group is None:
        return pack_pieces(pieces, context, **settings)
    if (groups := settings["max_documents"] // group) < 1:
        raise InputError(f"max_documents={settings['max_documents']}: less than a group of {group}")
    packing = pack_pieces(pieces, context, **{**settings, "max_documents": groups})
    lengths = np.concatenate([store.document_lengths for store in stores])
    documents = documents_of_groups(packing.pieces, group, lengths)
    return replace(packing, offsets=packing.offsets * group, pieces=documents)


def _group(stores: list[TokenStore]) -> int | None:
    """How many documents are a group in these shards."""
    first = stores[0]
    for store in stores[1:]:
        if store.group != first.group:
            raise InputError(
                f"{store.prefix}: groups of {store.group or 1}, and of {first.group or 1} in "
                f"{first.prefix}; pack them apart"
            )
    return first.group


def _write(out: Path, packing: Packing, stores: list[TokenStore], settings: dict[str, Any]) -> None:
    pieces = packing.pieces
    arrays = (packing.offsets, pieces.documents, pieces.starts, pieces.lengths)
    header = {
        "format": FORMAT,
        "context": packing.context,
        "vocabulary": stores[0].vocabulary.fingerprint(),
        "packs": len(packing),
        "pieces": len(pieces),
        "fill": packing.fill,
        **settings,
        "shards": [_describe(store, out) for store in stores],
    }
    with replacing(out) as beside:
        beside.mkdir()
        for (name, dtype), array in zip(DTYPES.items(), arrays, strict=True):
            np.save(beside / f"{name}.npy", array.astype(dtype, copy=False))
        (beside / "pack.json").write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")
        for file in beside.iterdir():
            sync(file)


def _describe(store: TokenStore, out: Path) -> dict[str, Any]:
    path = os.path.relpath(store.prefix.resolve(), out.resolve())
    group = {} if store.group is None else {"group": store.group}
    return {"path": path, "documents": len(store), "content": adopt(store).content, **group}
