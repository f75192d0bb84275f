"""Pack folders: NAME.pack/ says which pieces of which documents make each training sequence."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emu3_megatron.data.packing.pack_set import DTYPES, FORMAT, PackSet, first_documents
from emu3_megatron.data.packing.packing import Packing, pack_pieces
from emu3_megatron.data.packing.pieces import Pieces, pieces_of
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
        fill: tokens over room, 0 to 1.
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
    seed: int = 0,
    max_documents: int = 256,
    cut_text: bool = True,
) -> PackReport:
    """Pack shards into training sequences; the same arguments make the same packs.

    Shards that Megatron wrote are read through once and given a sidecar.

    Args:
        prefixes: of the shards, in order.
        out: the folder to write, `NAME.pack`.
        context: tokens a sequence.
        seed: which equally long documents go together, and the order of the packs.
        max_documents: documents a sequence takes at most.
        cut_text: cut text documents to fill the room that images and clips leave. Without it only
            documents longer than the context are cut.

    Raises:
        InputError: a shard cannot be used, an image or clip is longer than the context, or `out`
            is a folder of something else.
    """
    _refuse_other_folder(Path(out))
    stores = [TokenStore(prefix, vocabulary) for prefix in prefixes]
    firsts = first_documents(stores).tolist()
    pieces = Pieces.concatenate(
        [pieces_of(store, context, first) for store, first in zip(stores, firsts[:-1], strict=True)]
    )
    packing = pack_pieces(
        pieces, context, seed=seed, max_documents=max_documents, cut_text=cut_text
    )
    settings = {"seed": seed, "max_documents": max_documents, "cut_text": cut_text}
    _write(Path(out), packing, stores, settings)
    return PackReport(
        packs=len(packing),
        documents=firsts[-1],
        tokens=sum(store.num_tokens for store in stores),
        cuts=len(packing.pieces) - len(np.unique(packing.pieces.documents)),
        fill=packing.fill,
        bound=packing.bound,
    )


def _refuse_other_folder(out: Path) -> None:
    """Packs replace packs, whole or damaged, and nothing else."""
    ours = {"pack.json", *(f"{name}.npy" for name in DTYPES)}
    if out.is_dir() and (others := sorted({path.name for path in out.iterdir()} - ours)):
        raise InputError(
            f"{out}: exists and is no folder of packs, it holds {others[0]}; choose another"
        )


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
        (beside / "pack.json").write_text(json.dumps(header, indent=2) + "\n")
        for file in beside.iterdir():
            sync(file)


def _describe(store: TokenStore, out: Path) -> dict[str, Any]:
    path = os.path.relpath(store.prefix.resolve(), out.resolve())
    return {"path": path, "documents": len(store), "content": adopt(store).content}
