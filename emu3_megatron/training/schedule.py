"""The learning rate as a function of the step alone."""

import math

from emu3_megatron.config.training import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int) -> float:
    """The rate of step `step`, counted from 1: a linear warm-up, then a cosine down to `min_lr`.

    `min_lr` is reached after the last step of the cosine, so that none is taken at a rate of zero.
    """
    assert config.decay_steps is not None, "filled in when a run starts"
    if step <= config.warmup_steps:
        return config.lr * float(step) / float(config.warmup_steps)
    end = config.decay_steps + 1
    if step > end:
        return config.min_lr
    ratio = float(step - config.warmup_steps) / float(end - config.warmup_steps)
    share = 0.5 * (math.cos(math.pi * ratio) + 1.0)
    return config.min_lr + share * (config.lr - config.min_lr)
