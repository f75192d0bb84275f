"""Checks a prepared folder against its manifest, for `emu3 check FOLDER`."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emu3_megatron.data.check import check
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import GrammarError, parse
from emu3_megatron.prepare.pipeline import manifest_vocabulary
from emu3_megatron.prepare.tables import read_table
from emu3_megatron.prepare.workspace import HELD_OUT, MANIFEST, read_manifest
from emu3_megatron.vocabulary import Vocabulary


def check_prepared(out: Path, deep: bool = False) -> str:
    """Check shards, tables and packs against the manifest.

    Args:
        deep: also read every shard through and parse each of its documents.

    Returns:
        One line on what is there.

    Raises:
        InputError: what is wrong, and the way out.
    """
    manifest = read_manifest(out)
    if manifest is None:
        raise InputError(f"{out / MANIFEST}: no such file; run emu3 prepare again")
    vocabulary = manifest_vocabulary(manifest)
    entries = manifest["kinds"].values()
    shards = list(_shards(out, entries))
    held = list(_shards(out / HELD_OUT, [e["held_out"] for e in entries if "held_out" in e]))
    for prefix, entry in tqdm([*shards, *held], desc="shards", disable=None):
        _check_shard(prefix, entry, vocabulary, deep)
    for kind, entry in manifest["kinds"].items():
        _check_table(out / f"{kind}.parquet", kind, entry)
    _check_paths(out, manifest)
    packs, held_packs = manifest["packs"], manifest.get("held_out_packs", [])
    for entry in (*packs, *held_packs):
        check(out / entry["path"], vocabulary, deep=deep)
    line = f"{out}: {_counts(shards, packs)}"
    return f"{line}; held out: {_counts(held, held_packs)}" if held or held_packs else line


def _counts(shards: Sequence[tuple[Path, dict[str, Any]]], packs: Sequence[dict[str, Any]]) -> str:
    tokens = sum(entry["tokens"] for _, entry in shards)
    return f"{len(shards)} shards, {tokens:,} tokens, {len(packs)} folders of packs"


def _shards(out: Path, entries: Iterable[dict[str, Any]]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for entry in entries:
        for shard in entry["shards"]:
            yield out / "shards" / shard["name"], shard


def _check_paths(out: Path, manifest: dict[str, Any]) -> None:
    """Older versions wrote all packs of one context to one folder, the last over the others."""
    paths = [entry["path"] for entry in manifest["packs"]]
    for path in paths:
        if (number := paths.count(path)) > 1:
            raise InputError(
                f"{out / MANIFEST}: lists {number} folders of packs as {path}, where only the last "
                "is; run emu3 prepare again, which gives each a name of its own"
            )


def _check_shard(prefix: Path, entry: dict[str, Any], vocabulary: Vocabulary, deep: bool) -> None:
    store = TokenStore(prefix, vocabulary)
    content = store.sidecar.content if store.sidecar else None
    if (len(store), store.num_tokens, content) != (
        entry["documents"],
        entry["tokens"],
        entry["content"],
    ):
        raise InputError(
            f"{prefix}: not the shard that {MANIFEST} tells of; run emu3 prepare again"
        )
    if deep:
        store.check_all()
        for number in range(len(store)):
            try:
                parse(store.vocabulary, store.read(number))
            except GrammarError as error:
                raise InputError(f"{prefix}: document {number}: {error}") from None


def _check_table(path: Path, kind: str, entry: dict[str, Any]) -> None:
    rows = read_table(path)
    if kind == "text":  # the table of text holds only what could not be used
        return
    if (len(rows), sum(bool(row["kept"]) for row in rows)) != (entry["found"], entry["kept"]):
        raise InputError(f"{path}: not the table that {MANIFEST} tells of; run emu3 prepare again")
