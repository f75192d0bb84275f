"""Packs of prepared shards, by the recipe; packs that are there already are not made again."""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from emu3_megatron.config.prepare import PacksConfig
from emu3_megatron.data.packing.packs import NothingToPackError, pack_shards
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.workspace import HELD_OUT, digest
from emu3_megatron.vocabulary import Vocabulary


def pack_prepared(
    out: Path,
    configs: Sequence[PacksConfig],
    manifest: dict[str, Any],
    vocabulary: Vocabulary,
    folder: str = "",
) -> list[dict[str, Any]]:
    """Make packs over the shards that are prepared.

    Args:
        out: the prepared folder.
        manifest: what it says of itself.
        folder: inside `out`, with a slash, in which shards and packs lie.

    Returns:
        What the manifest says of each folder of packs; none of packs whose kinds are not prepared.

    Raises:
        InputError: an image, clip or group is longer than a context, or a selection is empty.
    """
    entries = (_pack(out, manifest, config, vocabulary, folder) for config in configs)
    return [entry for entry in entries if entry]


def pack_held_out(
    out: Path, configs: Sequence[PacksConfig], manifest: dict[str, Any], vocabulary: Vocabulary
) -> list[dict[str, Any]]:
    """The same packs of what is held out; none of those that have no document of their layout."""
    kinds = {
        kind: entry["held_out"]
        for kind, entry in manifest["kinds"].items()
        if entry.get("held_out", {}).get("shards")
    }
    held = {"kinds": kinds, "packs": manifest.get("held_out_packs", [])}
    found = []
    for config in configs:
        with contextlib.suppress(NothingToPackError):
            found += pack_prepared(out, [config], held, vocabulary, f"{HELD_OUT}/")
    return found


def _pack(
    out: Path,
    manifest: dict[str, Any],
    config: PacksConfig,
    vocabulary: Vocabulary,
    folder: str,
) -> dict[str, Any] | None:
    prepared = [kind for kind in config.kinds if kind in manifest["kinds"]]
    shards = [shard for kind in prepared for shard in manifest["kinds"][kind]["shards"]]
    if not shards:
        return None
    path = f"{folder}packs/{config.folder_name}"
    key = digest(config.model_dump(), [shard["content"] for shard in shards])
    for entry in manifest["packs"]:
        if entry["key"] == key and (out / path / "pack.json").is_file():
            return entry
    try:
        report = pack_shards(
            [out / folder / "shards" / shard["name"] for shard in shards],
            out / path,
            config.context,
            vocabulary=vocabulary,
            select=config.select,
            seed=config.seed,
            max_documents=config.max_documents,
        )
    except InputError as error:
        raise type(error)(f"{path}: {error}") from None
    what = {"path": path, "context": config.context, "kinds": prepared, "select": config.select}
    return {"key": key} | what | asdict(report)
