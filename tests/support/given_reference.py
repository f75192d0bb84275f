"""A third party's reference for DPO: log-probabilities that a test puts into the inputs."""

from pathlib import Path
from typing import Any

from torch import Tensor

from emu3_megatron.config.objectives import DpoConfig, ReferenceSection
from emu3_megatron.training.objectives.dpo import Dpo
from emu3_megatron.vocabulary import Vocabulary


class Given:
    """`inputs.columns["reference"]`, which no folder holds."""

    class Config(ReferenceSection):
        """Nothing to set."""

    def __init__(self, section: "Given.Config", vocabulary: Vocabulary):
        self.section = section
        self.columns: dict[str, Path] = {}

    def prepare(self, engine: Any) -> None:
        """Nothing to prepare."""

    def __call__(self, inputs: Any) -> Tensor:
        return inputs.columns["reference"]


def dpo(vocabulary: Vocabulary, **keys: Any) -> Dpo:
    """The objective with a given reference."""
    reference = {"kind": "support.given_reference:Given"}
    return Dpo(DpoConfig.model_validate({"reference": reference, **keys}), vocabulary)
