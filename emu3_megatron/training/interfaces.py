"""The interfaces of training a decoder: Objective and Engine."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from emu3_megatron.checkpoints.state import Stateful
from emu3_megatron.config import ModelConfig, Recipe
from emu3_megatron.config.training import (
    BackendConfig,
    OptimizerConfig,
    ParallelConfig,
    Recompute,
)
from emu3_megatron.data.batches import Batch
from emu3_megatron.model import Inputs

# Detached and additive; each token, document or pair is counted on one rank of data x context.
Sums = dict[str, Tensor]


class DecoderCall(Protocol):
    """A decoder as objectives see it, under every engine: see `model.Decoder.forward`."""

    def __call__(
        self,
        inputs: Inputs,
        want: str = "logits",
        z_loss: float = 0.0,
        candidates: int | None = None,
        known_scale: Tensor | None = None,
    ) -> Any: ...


class Objective(Protocol):
    """What is minimised.

    Attributes:
        weights: of labels by the vocabulary's classes, for whoever makes batches.
        columns: stored columns that batches must carry, by name their folder (`data.columns`).
        group: documents must come in groups of so many: 2 for pairs. None: each stands alone.
    """

    weights: Mapping[str, float]
    columns: Mapping[str, Path]
    group: int | None

    def prepare(self, engine: "Engine") -> None:
        """Called once, before any step, with the engine that trains."""
        ...

    def counts(self, batch: Batch) -> Tensor:
        """A batch's share of each denominator, fp64 [k], from whole rows."""
        ...

    def __call__(
        self, decoder: DecoderCall, inputs: Inputs, denominators: Tensor
    ) -> tuple[Tensor, Sums]:
        """The loss of one rank's part of a batch, already divided, and what is to be summed.

        Args:
            denominators: `counts` summed over the global batch, fp64 [k].
        """
        ...

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """From the summed numbers; holds `loss`."""
        ...


class Engine(Stateful, Protocol):
    """Computes gradients and moves weights."""

    def forward_backward(
        self, batches: Sequence[Batch], forward: Callable[[Any, Batch], tuple[Tensor, Sums]]
    ) -> list[Sums]:
        """Zero the gradients, then sum them over micro-batches and ranks; never average.

        Args:
            forward: of the decoder and a micro-batch; its loss is already divided.

        Returns:
            Of each micro-batch what `forward` gave besides the loss.
        """
        ...

    def grad_norm(self) -> float:
        """Norm of the whole gradient over all ranks; the gradients are final then."""
        ...

    def update(self, grad_norm: float, lr: float) -> None:
        """Clip the gradients and move the weights."""
        ...

    def decoder(self) -> AbstractContextManager[Any]:
        """A decoder over the live weights, whole and current: no gradients, no dropout."""
        ...

    def frozen(self, checkpoint: Path) -> Any:
        """The decoder of a checkpoint in this layout, as a reference that is never trained.

        Of equal weights it computes what the decoder that is trained does, to rounding.
        """
        ...

    def start_from(self, checkpoint: Path) -> None:
        """Take over the weights of a checkpoint, and nothing else of it."""
        ...


@dataclass(frozen=True)
class EngineSetting:
    """What an engine is built with besides its own section."""

    model: ModelConfig
    parallel: ParallelConfig
    backend: BackendConfig
    optimizer: OptimizerConfig
    precision: str
    recompute: Recompute
    seed: int

    @classmethod
    def of(cls, recipe: Recipe) -> "EngineSetting":
        return cls(
            recipe.model,
            recipe.parallel,
            recipe.backend,
            recipe.optimizer,
            recipe.precision,
            recipe.recompute,
            recipe.run.seed,
        )
