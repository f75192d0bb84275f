"""Schemas of the sections that every training run has, whatever it trains."""

from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from emu3_megatron.config.base import REQUIRED, Config, fixed, free


class ProfileConfig(Config):
    """Steps whose trace is written into `profiles/` of the run, and on a GPU their memory."""

    steps: list[PositiveInt] = free(REQUIRED, "numbers of the steps", min_length=1)
    ranks: list[NonNegativeInt] = free([0], "ranks that write one", min_length=1)


class RunConfig(Config):
    """Where a run lives, how long it is, what it leaves."""

    dir: Path = free(REQUIRED, "folder of the run")
    steps: PositiveInt = free(REQUIRED, "optimizer steps in all")
    seed: NonNegativeInt = fixed(0, "of initial weights, order of data, and all that is drawn")
    log_every: PositiveInt = free(10, "steps between rows of metrics")
    save_every: PositiveInt = free(1000, "steps between checkpoints; the last step has one too")
    save_minutes: PositiveFloat | None = free(None, "between checkpoints, beside save_every")
    keep: PositiveInt = free(3, "newest checkpoints to keep")
    keep_every: PositiveInt | None = free(None, "keep those of every so many steps too")
    save_in_background: bool = free(True, "training goes on while files are written")
    resume: Literal["strict", "auto"] = free(
        "strict", "auto passes over damaged checkpoints to the newest undamaged one"
    )
    hang_seconds: PositiveFloat = free(900.0, "without progress, before the run ends")
    stop_after: PositiveInt | None = free(None, "leave after this step, as if told to")
    leave_minutes: PositiveFloat | None = free(
        5.0, "before Slurm's time limit, to save and leave as if told to; null: not by itself"
    )
    wandb: str | None = free(None, "wandb project; honours WANDB_MODE=offline")
    profile: ProfileConfig | None = free(None, ProfileConfig.__doc__ or "")
    tensorboard: bool = free(False, "write TensorBoard's event files")


class GuardConfig(Config):
    """What happens to steps that must not move the weights. Those not finite are always skipped."""

    spikes: Literal["ignore", "skip", "rollback"] = free(
        "ignore", "rollback: weights of the last checkpoint, data goes on behind it"
    )
    threshold: PositiveFloat = free(6.0, "robust z-score of loss or gradient norm")
    window: PositiveInt = free(128, "steps that the score is taken over")
    patience: PositiveInt = free(5, "bad steps in a row that end the run")
    replicas_every: PositiveInt = free(100, "steps between comparisons of copies")


class EvaluationConfig(Config):
    """When something is measured that no step learns from."""

    every: PositiveInt = free(REQUIRED, "steps between evaluations; the last step has one too")
