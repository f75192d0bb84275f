"""Schemas of the sections `data` and `validation` of a training recipe."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, SerializeAsAny

from emu3_megatron.config.base import (
    REQUIRED,
    Component,
    chosen_by_kind,
    fixed,
    free,
    semantic,
)
from emu3_megatron.config.runs import EvaluationConfig


class SourceSection(Component):
    """A source of a mixture."""

    weight: PositiveFloat = semantic(1.0, "share of the sequences, up to a common factor")
    content: str | None = semantic(
        None, "hash of what the source holds; filled in when a run starts, by which it is known"
    )


class PackSource(SourceSection):
    """A folder of packs."""

    kind: Literal["pack"] = "pack"
    pack: Path = free(REQUIRED, "folder NAME.pack; it may move, its content may not change")


AnySource = Annotated[
    SerializeAsAny[SourceSection], chosen_by_kind({"pack": PackSource}, default="pack")
]


class DataSection(Component):
    """What every kind of data has."""

    context: PositiveInt = fixed(REQUIRED, "tokens a sequence")


class MixtureConfig(DataSection):
    """A weighted mixture of sources."""

    kind: Literal["mixture"] = "mixture"
    sources: list[AnySource] = semantic(REQUIRED, "what is mixed", min_length=1)
    reset_at_documents: bool = semantic(True, "attention and positions begin anew")
    null_prompt: float = semantic(
        0.05,
        "share of captioned documents that are trained without their caption, for guidance",
        ge=0,
        le=1,
    )
    workers: NonNegativeInt = free(2, "processes that read ahead on each rank; 0 reads in the rank")


AnyData = Annotated[
    SerializeAsAny[DataSection], chosen_by_kind({"mixture": MixtureConfig}, default="mixture")
]


class ValidationConfig(EvaluationConfig):
    """Held-out loss while training: the same documents every time."""

    batches: PositiveInt = free(REQUIRED, "batches of batch.size sequences an evaluation")
    sources: list[AnySource] = free(REQUIRED, "packs that are held out", min_length=1)
