"""What a DPO run checks of itself: its first loss, and that the loss moves."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from emu3_megatron.alignment.watching import WatchPreferenceLoss
from emu3_megatron.errors import InputError
from emu3_megatron.runs.events import Events, read_events
from emu3_megatron.runs.interfaces import StepResult

LN2 = 0.6931471805599453


def watch(folder: Path, losses: dict[int, float], **settings: Any) -> list[str]:
    """Events of a run whose preference loss is this at these steps."""
    values: dict[str, Any] = {"at_start": LN2, "precision": "fp32", "warmup_steps": 2, **settings}
    hook = WatchPreferenceLoss(**values)
    run: Any = SimpleNamespace(folder=folder, events=Events(folder, speaks=True))
    hook.before_training(run, min(losses) - 1)
    for step, loss in losses.items():
        metrics = {"preference_loss": loss, "num_tokens": 800.0, "num_pairs": 2.0}
        hook.after_step(run, step, StepResult(metrics), is_last=False)
    return [event["event"] for event in read_events(folder)]


def test_a_run_that_starts_from_its_reference_goes_on(tmp_path):
    assert watch(tmp_path, {1: LN2 + 5e-7, 2: 0.68, 3: 0.65}) == []


def test_a_run_that_starts_from_another_model_ends_after_a_step(tmp_path):
    with pytest.raises(InputError, match=r"preference_loss of step 1 is 0.69315\d+, .* is not the"):
        watch(tmp_path, {1: LN2 + 5e-6})


def test_rounding_to_bf16_is_allowed(tmp_path):
    assert watch(tmp_path, {1: LN2 + 5e-3}, precision="bf16") == []
    with pytest.raises(InputError, match="store it anew with emu3 reference"):
        watch(tmp_path, {1: 0.75}, precision="bf16")


def test_a_reference_of_another_layout_is_said_and_ends_nothing(tmp_path):
    events = watch(tmp_path, {1: 0.75, 3: 0.7}, precision="bf16", noise="another layout")

    assert events == ["reference of another layout", "reference differs"]


def test_a_loss_that_stands_still_after_the_warm_up_is_said_once(tmp_path):
    standing = dict.fromkeys(range(1, 6), LN2)

    assert watch(tmp_path, standing) == ["preference loss stands still"]


def test_a_resumed_run_is_not_compared_with_a_start(tmp_path):
    assert watch(tmp_path, {7: 0.4, 8: 0.4}) == []
