"""Data pipeline of feature files, the samples of Emu3's published training script.

Emu3's `emu3/train/prepare_data.py` writes a .pth file for each sample, with `name`, `images` (codes
[h, w]) and `texts` (the caption), and list/train.json, with their folder as `prefix` and their
names as `path_list`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emu3_megatron.config.dialogues import FeaturesConfig
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Document, captioned_image
from emu3_megatron.media.files import file_named, reason_of
from emu3_megatron.prepare.items import Failed, attempt
from emu3_megatron.prepare.parts import Part, Skipped
from emu3_megatron.prepare.sharding import describe_shards, make_shards, set_aside
from emu3_megatron.prepare.tables import write_table
from emu3_megatron.prepare.workspace import Workspace, chunks, digest, state_of_named
from emu3_megatron.vocabulary import Vocabulary

KIND = "features"
_FILES = 256  # that become a part together
_WAY_OUT = "repair it, or set such files aside with --skip-bad"
_RECONSTRUCT = np.empty(0).__reduce__()[0]  # how pickles make arrays
# What a pickle of codes may name: arrays of integers, as numpy 1 and numpy 2 write them.
_ALLOWED: list[Any] = [
    *((_RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    np.ndarray,
    np.dtype,
    *(type(np.dtype(f"{sign}int{bits}")) for sign in ("", "u") for bits in (8, 16, 32, 64)),
]


@dataclass(frozen=True)
class FeaturesTask:
    """Feature files that become a part."""

    out: Path
    sources: list[str]

    @property
    def size(self) -> int:
        return len(self.sources)


class ReadFeatures:
    """Makes captioned images of feature files; one that cannot be used raises with `strict`.

    Nothing in a file is executed: only numbers and texts are read.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary, strict: bool):
        self._folder, self._vocabulary, self._strict = folder, vocabulary, strict
        vocabulary.encoding.check()

    def __call__(self, task: FeaturesTask) -> None:
        documents: list[Document] = []
        skipped: list[Skipped] = []
        for source in task.sources:
            found = attempt(source, partial(self._document, file_named(self._folder, source)))
            if not isinstance(found, Failed):
                documents.append(found)
                continue
            reason = found.reason if found.expected else f"unreadable: {found.reason}"
            if self._strict:
                raise InputError(f"{self._folder / source}: {reason}; {_WAY_OUT}")
            skipped.append((source, reason))
        inputs = digest([document.tokens.tobytes().hex() for document in documents])
        Part.of(documents, inputs, tuple(skipped)).write(task.out)

    def _document(self, path: Path) -> Document:
        codes_hw, caption = read_feature(path)
        return captioned_image(self._vocabulary, caption, codes_hw)


def read_feature(path: Path) -> tuple[np.ndarray, str]:
    """Codes [h, w] and caption of a feature file.

    Raises:
        InputError: why it is none, without its name.
    """
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            sample = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # the unpickler raises what the damage leads it to
        raise InputError(f"unreadable: {_reason(error)}") from None
    if not isinstance(sample, dict) or not {"images", "texts"} <= sample.keys():
        raise InputError("no feature file: it lacks images and texts")
    codes = sample["images"]
    codes = codes.numpy() if isinstance(codes, torch.Tensor) else codes
    if not isinstance(codes, np.ndarray) or codes.ndim != 2 or codes.dtype.kind not in "iu":
        raise InputError("no grid of codes: images is no tensor [h, w] of integers")
    if not isinstance(sample["texts"], str):
        raise InputError("no caption: texts is no text")
    return codes, sample["texts"]


def _reason(error: Exception) -> str:
    """torch gives advice in many lines, to run what the file holds among it."""
    if isinstance(error, OSError):
        return reason_of(error)
    return "not a file of tensors and texts that torch has saved"


def prepare_features(workspace: Workspace, config: FeaturesConfig) -> dict[str, Any]:
    """Make the shards of all feature files of a list.

    Returns:
        What the manifest says of them.

    Raises:
        InputError: the list cannot be read, or nothing in it can be used; or, unless `skip_bad` is
            set, the first file that cannot.
    """
    folder, sources = read_list(config)
    strict = workspace.recipe.strict or not config.skip_bad
    vocabulary = workspace.recipe.vocabulary()
    settings = {"vocabulary": vocabulary.fingerprint()}
    tasks = _tasks(workspace, folder, sources, settings)
    make = partial(ReadFeatures, folder, vocabulary, strict)
    made = make_shards(workspace, KIND, settings, tasks, make, vocabulary, "file", on_device=False)
    if strict and made.skipped:
        raise InputError(f"{folder / made.skipped[0][0]}: {made.skipped[0][1]}; {_WAY_OUT}")
    reasons = dict(made.skipped)
    rows = [{"source": s, "kept": s not in reasons, "reason": reasons.get(s)} for s in sources]
    write_table(workspace.table(KIND), KIND, rows)
    return {
        "settings": settings,
        "found": len(rows),
        "kept": made.documents,
        "set_aside": set_aside(rows),
        "shards": describe_shards(workspace, made),
    }


def read_list(config: FeaturesConfig) -> tuple[Path, list[str]]:
    """The folder of the feature files, and their names in it."""
    try:
        listed = json.loads(config.source.read_text(encoding="utf-8"))
        folder, names = Path(listed["prefix"]), listed["path_list"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError
    except OSError as error:
        raise InputError(
            f"{config.source}: {reason_of(error)}; name Emu3's list/train.json"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f"{config.source}: no list of feature files, it lacks prefix and path_list; name "
            "Emu3's list/train.json"
        ) from None
    folder = config.folder or folder
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder, the list's prefix; name features.folder")
    return folder, names


def _tasks(
    workspace: Workspace, folder: Path, sources: Sequence[str], settings: dict[str, Any]
) -> list[FeaturesTask]:
    parts = workspace.work(KIND, "parts")
    tasks = []
    for some in chunks(sources, _FILES):
        states = [state_of_named(folder, source) for source in some]
        tasks.append(FeaturesTask(parts / f"{digest(settings, states)}.npz", some))
    return tasks
