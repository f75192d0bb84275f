"""References of DPO: whose log-probabilities those of the policy are compared with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from emu3_megatron import manifest
from emu3_megatron.checkpoints.folders import find_checkpoint, read_checkpoint, verify
from emu3_megatron.config.base import build
from emu3_megatron.config.objectives import LiveReference, ReferenceSection, StoredReference
from emu3_megatron.data.columns import read_columns
from emu3_megatron.errors import InputError
from emu3_megatron.model import Inputs
from emu3_megatron.training.interfaces import Engine
from emu3_megatron.vocabulary import Vocabulary

COLUMN = "reference"


class Reference(Protocol):
    """Gives the log-probability of each label under the reference.

    Attributes:
        section: of the recipe, with the digest of the reference's checkpoint.
        columns: stored columns that batches must carry.
    """

    section: ReferenceSection
    columns: Mapping[str, Path]

    def prepare(self, engine: Engine) -> None:
        """Called once, before any step."""
        ...

    def __call__(self, inputs: Inputs) -> Tensor:
        """Of this rank's labels, fp32 [b, s]; 0 where there is none."""
        ...


def build_reference(section: ReferenceSection, vocabulary: Vocabulary) -> Reference:
    """The reference that a recipe names; a third party's class is called alike."""
    return build(section, {"stored": Stored, "live": Live}, vocabulary)


class Stored:
    """What `emu3 reference` wrote comes with the batches.

    Attributes:
        about: what its manifest says.

    Raises:
        InputError: it is missing, damaged, or of another vocabulary.
    """

    def __init__(self, section: StoredReference, vocabulary: Vocabulary):
        folder = section.folder
        self.about = read_columns(folder)
        if self.about.get("column") != COLUMN:
            raise InputError(f"{folder}: columns, but no reference's; name another folder")
        if self.about["vocabulary"] != vocabulary.fingerprint():
            raise InputError(
                f"{folder}: a reference of another vocabulary; make one with emu3 reference in "
                "another objective.reference.folder"
            )
        self.section = _filled(section, self.about["checkpoint"]["digest"])
        self.columns: Mapping[str, Path] = {COLUMN: folder}

    def prepare(self, engine: Engine) -> None:
        """Nothing to prepare."""

    def __call__(self, inputs: Inputs) -> Tensor:
        return inputs.columns[COLUMN]


class Live:
    """A frozen decoder computes them, in the layout in which the policy is computed.

    Raises:
        InputError: its checkpoint is missing or damaged.
    """

    def __init__(self, section: LiveReference, vocabulary: Vocabulary):
        self.checkpoint = find_checkpoint(section.checkpoint)
        self.section = _filled(section, checkpoint_digest(self.checkpoint))
        self.columns: Mapping[str, Path] = {}

    def prepare(self, engine: Engine) -> None:
        """Open the frozen decoder."""
        verify(self.checkpoint)
        self._decoder = engine.frozen(self.checkpoint)

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> Tensor:
        return self._decoder(inputs, "log_probabilities").log_prob


def checkpoint_digest(path: Path) -> str:
    """By which a checkpoint is known, wherever it lies."""
    read_checkpoint(path)
    return manifest.digest_of(path)


def _filled(section: Any, digest: str) -> Any:
    if section.content not in (None, digest):
        raise InputError(
            f"objective.reference.content: {section.content[:12]}… in the recipe, its reference "
            f"is of checkpoint {digest[:12]}…; leave it out, or name the reference it is of"
        )
    return section.model_copy(update={"content": digest})
