"""The learning rate as a function of the step alone."""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

from emu3_megatron.config.base import build
from emu3_megatron.config.schedule import (
    ConstantConfig,
    CosineConfig,
    FallingConfig,
    LinearConfig,
    ScheduleConfig,
    WsdConfig,
)

Shape = Callable[[float], float]  # from 1 at 0 to 0 at 1

SHAPES: Mapping[str, Shape] = {
    "cosine": lambda ratio: 0.5 * (math.cos(math.pi * ratio) + 1.0),
    "linear": lambda ratio: 1.0 - ratio,
    "sqrt": lambda ratio: 1.0 - math.sqrt(ratio),
}


class Rate(Protocol):
    """The learning rate of a step, counted from 1."""

    def __call__(self, step: int, /) -> float: ...


def build_schedule(schedule: ScheduleConfig, lr: float) -> Rate:
    """The learning rate of each step. Raises InputError: a third party's cannot be built.

    Args:
        lr: the highest rate, `optimizer.lr`.
    """
    rate: Rate = build(schedule, _BUILTIN, lr)
    return rate


def _constant(config: ConstantConfig, lr: float) -> Rate:
    return lambda step: lr if step > config.warmup_steps else _rise(config, lr, step)


def _cosine(config: CosineConfig, lr: float) -> Rate:
    return _falling(config, lr, config.warmup_steps, SHAPES["cosine"])


def _linear(config: LinearConfig, lr: float) -> Rate:
    return _falling(config, lr, config.warmup_steps, SHAPES["linear"])


def _wsd(config: WsdConfig, lr: float) -> Rate:
    assert config.steps is not None, "filled in when a run starts"
    return _falling(config, lr, config.steps - config.cooldown_steps, SHAPES[config.cooldown])


def _falling(config: FallingConfig, lr: float, last_whole: int, shape: Shape) -> Rate:
    """A rise to `lr`, which step `last_whole` is still taken at, then a fall to `min_lr`.

    `min_lr` is reached one step after the last, so that no step is taken at a rate of zero.
    """
    assert config.steps is not None, "filled in when a run starts"
    end = config.steps + 1

    def rate(step: int) -> float:
        if step <= config.warmup_steps:
            return _rise(config, lr, step)
        if step <= last_whole:
            return lr
        if step > end:
            return config.min_lr
        ratio = float(step - last_whole) / float(end - last_whole)
        return config.min_lr + shape(ratio) * (lr - config.min_lr)

    return rate


def _rise(config: ScheduleConfig, lr: float, step: int) -> float:
    return lr * float(step) / float(config.warmup_steps)


_BUILTIN: Mapping[str, Callable[..., Rate]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
    "wsd": _wsd,
}
