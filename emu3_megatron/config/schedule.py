"""Schema of the schedules of the learning rate, `optimizer.schedule`: one section for each kind."""

from typing import Annotated, Literal, Self

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, SerializeAsAny

from emu3_megatron.config.base import REQUIRED, Component, chosen_by_kind, semantic


class ScheduleConfig(Component):
    """What all schedules have: the rate rises in a line to `optimizer.lr`."""

    warmup_steps: NonNegativeInt = semantic(0, "steps of linear rise")

    def check(self, lr: float, run_steps: int) -> None:
        """Raise ValueError where the schedule does not fit the highest rate or the run."""
        if self.warmup_steps > run_steps:
            raise ValueError(
                f"optimizer.schedule.warmup_steps={self.warmup_steps} is more than "
                f"run.steps={run_steps}; lower it"
            )

    def completed(self, steps: int) -> Self:
        """This schedule with `steps` as its length, where it needs one and has none."""
        return self


class ConstantConfig(ScheduleConfig):
    """After the warm-up the rate stays at `optimizer.lr`."""

    kind: Literal["constant"] = "constant"


class FallingConfig(ScheduleConfig):
    """What schedules have that fall to `min_lr`."""

    steps: PositiveInt | None = semantic(
        None, "steps until min_lr, the warm-up among them; run.steps of the first start without it"
    )
    min_lr: NonNegativeFloat = semantic(0.0, "learning rate at the end")

    def check(self, lr: float, run_steps: int) -> None:
        if self.min_lr > lr:
            raise ValueError(
                f"optimizer.schedule.min_lr={self.min_lr} is above optimizer.lr={lr}; lower it"
            )
        length = (
            f"optimizer.schedule.steps={self.steps}" if self.steps else f"run.steps={run_steps}"
        )
        if sum(self.parts.values()) > (self.steps or run_steps):
            parts = " + ".join(f"{name}={steps}" for name, steps in self.parts.items())
            raise ValueError(f"optimizer.schedule.{parts} is more than {length}; lower it")

    @property
    def parts(self) -> dict[str, int]:
        """The parts that must find place within the length, in steps by their key."""
        return {"warmup_steps": self.warmup_steps}

    def completed(self, steps: int) -> Self:
        return self if self.steps else self.model_copy(update={"steps": steps})


class CosineConfig(FallingConfig):
    """After the warm-up the rate falls as half a cosine."""

    kind: Literal["cosine"] = "cosine"


class LinearConfig(FallingConfig):
    """After the warm-up the rate falls in a line."""

    kind: Literal["linear"] = "linear"


class WsdConfig(FallingConfig):
    """Warm-up, stable, decay: the rate stays at `optimizer.lr` and falls in the last steps."""

    kind: Literal["wsd"] = "wsd"
    cooldown_steps: PositiveInt = semantic(REQUIRED, "of `steps`, the last ones: the rate falls")
    cooldown: Literal["linear", "cosine", "sqrt"] = semantic(
        "linear", "shape of the fall; sqrt is 1 - sqrt(share of the cooldown)"
    )

    @property
    def parts(self) -> dict[str, int]:
        return {"warmup_steps": self.warmup_steps, "cooldown_steps": self.cooldown_steps}


AnySchedule = Annotated[
    SerializeAsAny[ScheduleConfig],
    chosen_by_kind(
        {
            "cosine": CosineConfig,
            "linear": LinearConfig,
            "constant": ConstantConfig,
            "wsd": WsdConfig,
        },
        default="cosine",
    ),
]
