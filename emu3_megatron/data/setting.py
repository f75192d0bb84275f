"""The setting that every kind of data is built with, and what it asks of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from emu3_megatron.config.training import BatchConfig
from emu3_megatron.vocabulary import Vocabulary

if TYPE_CHECKING:  # importing it prepares torch for Megatron-core
    from emu3_megatron.parallel import Mesh


class Needs(Protocol):
    """What an objective asks of the data: see `Setting`."""

    weights: Mapping[str, float]
    columns: Mapping[str, Path]
    group: int | None


@dataclass(frozen=True)
class Setting:
    """What data is built with besides its section of the recipe.

    A third party's data is a class with `Config`, a DataSection; it is called with its section and
    a Setting, and a recipe names it as `kind: package.module:Name`. `runs.interfaces.Data` is what
    it does; its attribute `section` is what checkpoints record.

    Attributes:
        batch: sequences a step, and how many a rank computes at once.
        seed: of the run.
        weights: of a label's loss by its class, from the objective.
        columns: stored columns that the objective needs, by name their folder.
        group: the objective needs documents in groups of so many.
    """

    vocabulary: Vocabulary
    batch: BatchConfig
    seed: int
    weights: Mapping[str, float]
    columns: Mapping[str, Path] = field(default_factory=dict)
    group: int | None = None

    @classmethod
    def of(
        cls, vocabulary: Vocabulary, batch: BatchConfig, seed: int, objective: Needs
    ) -> "Setting":
        """The setting of a run by its objective."""
        return cls(vocabulary, batch, seed, objective.weights, objective.columns, objective.group)


class Reader(Protocol):
    """What reads the data: a run, by its place in the mesh and its trainer.

    The trainer's `place` is applied to every batch in the data workers, and gives it its `inputs`;
    None leaves batches as they are.
    """

    @property
    def mesh(self) -> "Mesh": ...

    @property
    def trainer(self) -> Any: ...
