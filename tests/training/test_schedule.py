"""The learning rate, a function of the step alone."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from transformers import optimization

from emu3_megatron.config.base import semantic
from emu3_megatron.config.schedule import ScheduleConfig
from emu3_megatron.config.training import OptimizerConfig
from emu3_megatron.runs.schedule import build_schedule

LR, STEPS = 3e-4, 100


def rates(taken=STEPS, lr=LR, **schedule):
    """The rates of so many steps; the schedule is as long, unless it says otherwise."""
    config = OptimizerConfig.model_validate({"lr": lr, "schedule": schedule})
    config.schedule = config.schedule.completed(taken)
    return [build_schedule(config.schedule, config.lr)(step) for step in range(1, taken + 1)]


# Against other implementations. Where theirs count steps from 0, ours start at their second step,
# so that the first step is not taken at a rate of zero; their end is one step after our last.


def transformers_rates(schedule, **arguments):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    scheduler = schedule(optimizer, **arguments)
    found = []
    for _ in range(STEPS):
        optimizer.step()
        scheduler.step()
        found.append(scheduler.get_last_lr()[0])
    return found


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_cosine_and_linear_are_those_of_transformers(kind, warmup):
    theirs = transformers_rates(
        getattr(optimization, f"get_{kind}_schedule_with_warmup"),
        num_warmup_steps=warmup,
        num_training_steps=STEPS + 1,
    )

    assert rates(kind=kind, warmup_steps=warmup) == pytest.approx(theirs)


def test_constant_is_that_of_transformers():
    theirs = transformers_rates(optimization.get_constant_schedule_with_warmup, num_warmup_steps=7)

    assert rates(kind="constant", warmup_steps=7) == pytest.approx(theirs)


@pytest.mark.parametrize("shape", ["linear", "cosine", "sqrt"])
def test_wsd_is_that_of_transformers(shape):
    theirs = transformers_rates(
        optimization.get_wsd_schedule,
        num_warmup_steps=7,
        num_stable_steps=STEPS - 7 - 20,
        num_decay_steps=20 + 1,
        decay_type={"sqrt": "1-sqrt"}.get(shape, shape),
    )

    wsd = {"kind": "wsd", "cooldown_steps": 20, "cooldown": shape}
    assert rates(warmup_steps=7, **wsd) == pytest.approx(theirs)


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"kind": "cosine"}, {"lr_decay_style": "cosine"}),
        ({"kind": "linear"}, {"lr_decay_style": "linear"}),
        (
            {"kind": "wsd", "cooldown_steps": 20, "cooldown": "linear"},
            {"lr_decay_style": "WSD", "wsd_decay_steps": 21, "lr_wsd_decay_style": "linear"},
        ),
    ],
)
def test_they_are_megatrons_schedules_to_the_bit(ours, theirs, warmup):
    group = {}
    megatron = OptimizerParamScheduler(
        SimpleNamespace(param_groups=[group]),
        init_lr=0.0,
        max_lr=LR,
        min_lr=1e-5,
        lr_warmup_steps=warmup,
        lr_decay_steps=STEPS + 1,
        start_wd=0.1,
        end_wd=0.1,
        wd_incr_steps=0,
        wd_incr_style="constant",
        **theirs,
    )

    for rate in rates(warmup_steps=warmup, min_lr=1e-5, **ours):
        megatron.step(1)
        assert group["lr"] == rate


# What the numbers are


def test_the_rate_rises_in_a_line_and_falls_as_a_cosine():
    rise = [1e-2 * n / 4 for n in (1, 2, 3, 4)]
    fall = [1e-2 * (1 + math.cos(math.pi * n / 7)) / 2 for n in (1, 2, 3, 4, 5, 6)]

    assert rates(10, lr=1e-2, warmup_steps=4) == pytest.approx(rise + fall)


def test_wsd_is_stable_until_its_cooldown():
    found = rates(10, lr=1.0, kind="wsd", warmup_steps=2, cooldown_steps=3)

    assert found == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_no_step_is_taken_at_a_rate_of_zero(kind):
    found = rates(10, kind=kind)

    assert found[0] > found[1]  # without warm-up the fall begins at once
    assert found[-1] > 0


@pytest.mark.parametrize(
    "schedule", [{"kind": "cosine"}, {"kind": "linear"}, {"kind": "wsd", "cooldown_steps": 9}]
)
def test_the_rate_falls_to_min_lr_and_stays_there(schedule):
    found = rates(50, min_lr=1e-5, steps=30, **schedule)

    assert all(before >= after for before, after in pairwise(found))
    assert found[29] > found[30] == found[49] == 1e-5


def test_a_warm_up_as_long_as_the_run():
    assert rates(4, lr=1e-2, warmup_steps=4) == pytest.approx([0.25e-2, 0.5e-2, 0.75e-2, 1e-2])


# A third party's


class Halving:
    class Config(ScheduleConfig):
        every: int = semantic(10, "steps until the rate is half")

    def __init__(self, config, lr):
        self.config, self.lr = config, lr

    def __call__(self, step):
        return self.lr * 0.5 ** (step // self.config.every)


def test_a_third_partys_schedule_is_built_by_its_name():
    found = rates(4, lr=1.0, kind=f"{__name__}:Halving", every=2)

    assert found == [1.0, 0.5, 0.5, 0.25]


# Going on


def test_a_longer_wsd_run_repeats_no_warm_up_and_has_the_same_steps_before_the_cooldown():
    wsd = {"kind": "wsd", "warmup_steps": 5, "cooldown_steps": 10}
    short, longer = rates(50, **wsd), rates(80, **wsd)

    assert longer[:40] == short[:40]
    assert longer[40:70] == [LR] * 30


def test_constant_is_wsd_before_its_cooldown():
    constant = rates(50, kind="constant", warmup_steps=5)
    wsd = rates(50, kind="wsd", warmup_steps=5, cooldown_steps=10)

    assert constant[:40] == wsd[:40]
