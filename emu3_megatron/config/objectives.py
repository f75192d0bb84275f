"""Schemas of the section `objective` of a training recipe: what is minimised."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import NonNegativeFloat, PositiveFloat, SerializeAsAny, field_validator
from pydantic import model_validator as validator

from emu3_megatron.config.base import REQUIRED, Component, chosen_by_kind, free, semantic
from emu3_megatron.config.model import ModelConfig
from emu3_megatron.vocabulary import CLASS_WEIGHTS


class NextTokenConfig(Component):
    """The weighted next-token loss, the objective of every stage of pre-training."""

    kind: Literal["next_token"] = "next_token"
    weights: dict[str, NonNegativeFloat] = semantic(
        CLASS_WEIGHTS, "of a label's loss, by its class; the loss is the weighted mean"
    )
    z_loss: NonNegativeFloat = semantic(0.0, "weight of the mean squared log-partition")
    codes: bool = semantic(
        True,
        "false leaves codes out: they are no labels and no candidates, and their rows of the head "
        "get no gradient",
    )

    @field_validator("weights", mode="before")
    @classmethod
    def _all_classes(cls, weights: Any) -> Any:
        """Classes that are not named keep Emu3's weight."""
        if not isinstance(weights, dict):
            return weights
        for name in weights:
            if name not in CLASS_WEIGHTS:
                raise ValueError(f"no class {name!r}; choose one of {', '.join(CLASS_WEIGHTS)}")
        return {**CLASS_WEIGHTS, **weights}

    @validator(mode="after")
    def _codes_that_are_left_out_weigh_nothing(self) -> "NextTokenConfig":
        if not self.codes and self.weights["code"]:
            raise ValueError(
                f"codes=false leaves codes out, weights.code={self.weights['code']} trains them; "
                "set it to 0"
            )
        return self


class ReferenceSection(Component):
    """Whose log-probabilities preferences are measured against: the model training starts from."""

    content: str | None = semantic(
        None, "digest of the reference's checkpoint; filled in when a run starts"
    )


class StoredReference(ReferenceSection):
    """Log-probabilities that `emu3 reference RECIPE` wrote."""

    kind: Literal["stored"] = "stored"
    folder: Path = free(REQUIRED, "where emu3 reference writes them")
    any_layout: bool = free(
        False,
        "take those of another parallel layout; in bf16 this adds noise as large as the signal",
    )


class LiveReference(ReferenceSection):
    """A frozen decoder beside the one that is trained; it computes in every step."""

    kind: Literal["live"] = "live"
    checkpoint: Path = free(REQUIRED, "the checkpoint that training starts from, run.init_from")


AnyReference = Annotated[
    SerializeAsAny[ReferenceSection],
    chosen_by_kind({"stored": StoredReference, "live": LiveReference}, default="stored"),
]

# The variants whose loss is a cross-entropy, in which labels can be smoothed.
_SMOOTHED = ("sigmoid", "normalized")


class DpoConfig(Component):
    """Direct preference optimization on pairs of documents, with a next-token loss beside it."""

    kind: Literal["dpo"] = "dpo"
    beta: PositiveFloat = semantic(0.1, "how strongly the policy is held to the reference")
    nll: NonNegativeFloat = semantic(0.2, "weight of the chosen side's mean next-token loss")
    variant: Literal["sigmoid", "normalized", "ipo", "hinge"] = semantic(
        "sigmoid", "of the preference loss; normalized and ipo divide by the number of tokens"
    )
    label_smoothing: NonNegativeFloat = semantic(
        0.0, "share of pairs whose sides are taken to be swapped; of sigmoid and normalized", lt=0.5
    )
    tokens: Literal["codes", "answer"] = semantic(
        "codes", "which labels count: visual codes, or everything behind the prompt"
    )
    reference: AnyReference = semantic(REQUIRED, ReferenceSection.__doc__ or "")

    @validator(mode="after")
    def _variant_fits(self) -> "DpoConfig":
        if self.variant == "normalized" and self.beta < 1:
            raise ValueError(
                f"beta={self.beta} is too small for variant=normalized, whose margins are those of "
                "a single token; set objective.beta to 1 or more (2 to 5 is usual)"
            )
        if self.label_smoothing and self.variant not in _SMOOTHED:
            raise ValueError(
                f"label_smoothing={self.label_smoothing} is not defined for variant={self.variant};"
                f" set it to 0, or choose variant={' or '.join(_SMOOTHED)}"
            )
        return self


def unfit(
    objective: Component, model: ModelConfig, data: Component, init_from: Path | None
) -> Iterator[str]:
    """What of a recipe does not fit its objective, a line each, with the way out."""
    if not isinstance(objective, DpoConfig):
        return
    if model.dropout:
        yield (
            f"model.dropout={model.dropout}: objective.kind=dpo compares log-probabilities with "
            "those of a reference, which dropout changes at random; set model.dropout=0"
        )
    if not getattr(data, "reset_at_documents", True):
        yield (
            "data.reset_at_documents=false: with objective.kind=dpo the sides of a pair must not "
            "see each other; set data.reset_at_documents=true"
        )
    if init_from is None:
        yield (
            "run.init_from: objective.kind=dpo improves a model that can draw already; name the "
            "checkpoint to start from, which is the reference too"
        )


AnyObjective = Annotated[
    SerializeAsAny[Component],
    chosen_by_kind({"next_token": NextTokenConfig, "dpo": DpoConfig}, default="next_token"),
]
