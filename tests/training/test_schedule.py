"""The learning rate, a function of the step alone."""

import math
from types import SimpleNamespace

import pytest
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from emu3_megatron.config.training import OptimizerConfig
from emu3_megatron.training.schedule import learning_rate


def rates(steps, **values):
    config = OptimizerConfig(**{"lr": 1e-2, "warmup_steps": 0, "decay_steps": steps, **values})
    return [learning_rate(config, step) for step in range(1, steps + 1)]


def test_the_rate_rises_in_a_line_and_falls_as_a_cosine():
    rise = [1e-2 * n / 4 for n in (1, 2, 3, 4)]
    fall = [1e-2 * (1 + math.cos(math.pi * n / 7)) / 2 for n in (1, 2, 3, 4, 5, 6)]

    assert rates(10, warmup_steps=4) == pytest.approx(rise + fall)


def test_no_step_is_taken_at_a_rate_of_zero():
    found = rates(10)

    assert found[0] > found[1]  # without warm-up the fall begins at once
    assert found[-1] > 0


def test_the_rate_falls_towards_min_lr_and_stays_there():
    config = OptimizerConfig(lr=1e-2, min_lr=1e-3, decay_steps=1000)

    assert learning_rate(config, 1000) == pytest.approx(1e-3, rel=1e-4)
    assert learning_rate(config, 5000) == 1e-3


def test_a_warm_up_as_long_as_the_run():
    assert rates(4, warmup_steps=4) == pytest.approx([0.25e-2, 0.5e-2, 0.75e-2, 1e-2])


@pytest.mark.parametrize("warmup", [0, 7])
def test_it_is_megatrons_schedule_to_the_bit(warmup):
    group = {}
    theirs = OptimizerParamScheduler(
        SimpleNamespace(param_groups=[group]),
        init_lr=0.0,
        max_lr=3e-4,
        min_lr=1e-5,
        lr_warmup_steps=warmup,
        lr_decay_steps=101,
        lr_decay_style="cosine",
        start_wd=0.1,
        end_wd=0.1,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )
    ours = rates(100, lr=3e-4, min_lr=1e-5, warmup_steps=warmup)

    for rate in ours:
        theirs.step(1)
        assert group["lr"] == rate
