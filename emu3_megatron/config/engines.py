"""Schemas of the section `engine` of training recipes: who computes gradients, moves weights."""

from typing import Annotated, Any, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, SerializeAsAny, field_validator
from pydantic import model_validator as validator

from emu3_megatron.config.base import Component, Config, chosen_by_kind, fixed, free, semantic

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# Of DeepSpeed's section zero_optimization, what the other fields decide.
_OWN_KEYS = ("stage", "offload_optimizer", "offload_param", "zero_force_ds_cpu_optimizer")


class MegatronConfig(Component):
    """Megatron-core: tensor, sequence, context and data parallel."""

    kind: Literal["megatron"] = "megatron"


class LoraConfig(Config):
    """Low-rank adapters in the layers; the model's own weights do not move."""

    rank: PositiveInt = fixed(16, "columns of each adapter")
    alpha: PositiveFloat = semantic(32.0, "an adapter counts alpha / rank")
    dropout: NonNegativeFloat = semantic(0.0, "of what an adapter reads", lt=1)
    targets: list[str] = fixed(
        list(PROJECTIONS), f"matrices with an adapter: {', '.join(PROJECTIONS)}", min_length=1
    )

    @field_validator("targets")
    @classmethod
    def _targets_exist(cls, targets: list[str]) -> list[str]:
        for name in targets:
            if name not in PROJECTIONS:
                raise ValueError(
                    f"{name!r} matches no matrix of the layers; "
                    f"choose among {', '.join(PROJECTIONS)}"
                )
        return targets


class DeepSpeedConfig(Component):
    """DeepSpeed on transformers' Emu3: data parallel ranks of one node, ZeRO, LoRA."""

    kind: Literal["deepspeed"] = "deepspeed"
    stage: Literal[0, 1, 2, 3] = free(
        2, "of ZeRO, what ranks divide: nothing, optimizer states, gradients too, weights too"
    )
    offload: Literal["none", "optimizer", "weights"] = free(
        "none",
        "what lies in the host's memory: optimizer states, from stage 1 on; weights too, stage 3",
    )
    lora: LoraConfig | None = fixed(None, LoraConfig.__doc__ or "")
    zero: dict[str, Any] = free({}, "further keys of DeepSpeed's section zero_optimization")

    @validator(mode="after")
    def _stage_can(self) -> "DeepSpeedConfig":
        stages = {"none": (0, 1, 2, 3), "optimizer": (1, 2, 3), "weights": (3,)}[self.offload]
        if self.stage not in stages:
            raise ValueError(
                f"offload={self.offload} is not possible at stage={self.stage}; set stage to "
                f"{' or '.join(map(str, stages))}, or offload=none"
            )
        for key in self.zero:
            if key in _OWN_KEYS:
                raise ValueError(f"zero.{key}: set stage and offload of the engine instead")
        return self


AnyEngine = Annotated[
    SerializeAsAny[Component],
    chosen_by_kind({"megatron": MegatronConfig, "deepspeed": DeepSpeedConfig}, default="megatron"),
]
