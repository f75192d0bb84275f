"""Resolves the shards that a user names, and the vocabulary they were written with."""

import os
from collections.abc import Iterable

from emu3_megatron.config.model import preset_vocabulary
from emu3_megatron.config.presets import PRESETS
from emu3_megatron.errors import InputError
from emu3_megatron.vocabulary import Vocabulary

_SUFFIXES = (".bin", ".idx", ".json")


def prefix_of(path: str) -> str:
    """The shard's path without suffix; it may be named by any of its files."""
    return path.rpartition(".")[0] if path.endswith(_SUFFIXES) else path


def prefixes_of(paths: Iterable[str]) -> list[str]:
    """The shards that are named, each once: `shard.*` of a shell names every file of a shard."""
    by_place = {os.path.realpath(prefix): prefix for prefix in map(prefix_of, paths)}
    return list(by_place.values())


def vocabulary_of(path: str, model: str | None) -> Vocabulary:
    """The vocabulary of `--model`, else that of the preset which the shard or pack names."""
    from emu3_megatron.data.check import vocabulary_fingerprint
    from emu3_megatron.data.shards.index import check_index
    from emu3_megatron.data.shards.sidecar import shard_file

    if model:
        return _preset_vocabulary(model)
    fingerprint = vocabulary_fingerprint(path)
    if fingerprint is None:
        check_index(shard_file(path, "idx"))
        raise InputError(
            f"{path}: a shard without .json says nothing of its vocabulary; name the model whose "
            "tokens it holds with --model"
        )
    for preset in PRESETS:
        vocabulary = _preset_vocabulary(preset)
        if fingerprint == vocabulary.fingerprint():
            return vocabulary
    raise InputError(f"{path}: of no preset's vocabulary; name its model with --model")


def _preset_vocabulary(model: str) -> Vocabulary:
    if model not in PRESETS:
        raise InputError(f"--model {model}: no such preset; choose one of {', '.join(PRESETS)}")
    return preset_vocabulary(model)
