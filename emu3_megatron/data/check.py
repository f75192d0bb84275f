"""Checks a shard or a pack folder, for `emu3 check`."""

from pathlib import Path

from emu3_megatron.data.groups import check_prompts
from emu3_megatron.data.packing.pack_set import PackSet, read_header
from emu3_megatron.data.shards.sidecar import Sidecar
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.vocabulary import Vocabulary


def check(path: str | Path, vocabulary: Vocabulary, deep: bool = False) -> str:
    """Open a shard or packs, which checks them.

    Args:
        path: prefix of a shard, or a pack folder.
        deep: read every token; for packs also see that they hold each document exactly once.

    Returns:
        One line on what is there.

    Raises:
        InputError: what is wrong, and the way out.
    """
    opened = PackSet(path, vocabulary) if Path(path).is_dir() else TokenStore(path, vocabulary)
    if deep:
        opened.check_all()
        if isinstance(opened, TokenStore) and opened.group:
            check_prompts(opened, needed=False)
    if isinstance(opened, PackSet):
        shards = len(opened.stores)
        return f"{path}: {len(opened):,} packs of {opened.context:,} tokens from {shards} shards"
    return f"{path}: {len(opened):,} documents, {opened.num_tokens:,} tokens"


def vocabulary_fingerprint(path: str | Path) -> str | None:
    """What a shard's sidecar or a pack says of its vocabulary; None for a shard without sidecar."""
    if Path(path).is_dir():
        return read_header(Path(path))["vocabulary"]
    sidecar = Sidecar.read(path)
    return sidecar.vocabulary if sidecar else None
