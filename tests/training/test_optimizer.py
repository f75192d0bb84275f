"""AdamW and its schedule, as recipes describe them."""

import math

import pytest
import torch
from support.tiny import tiny_recipe

from emu3_megatron.training.optimizer import build_trainable


@pytest.fixture
def build(mesh, tmp_path):
    """A function that builds the tiny trainable; nothing reads its packs."""

    def build(steps=10, distributed=False, **optimizer):
        recipe = tiny_recipe(
            tmp_path / "none.pack",
            tmp_path,
            optimizer={"lr": 1e-2, "warmup_steps": 0, **optimizer},
            parallel={"distributed_optimizer": distributed},
        )
        recipe.run.steps = steps
        return build_trainable(recipe)

    return build


def rates(trainable, steps):
    """The learning rate of each step."""
    found = []
    for _ in range(steps):
        trainable.schedule.step(1)
        (rate,) = {group["lr"] for group in trainable.optimizer.param_groups}
        found.append(rate)
    return found


def test_the_rate_rises_in_a_line_and_falls_as_a_cosine(build):
    found = rates(build(steps=10, warmup_steps=4), 10)

    rise = [1e-2 * n / 4 for n in (1, 2, 3, 4)]
    fall = [1e-2 * (1 + math.cos(math.pi * n / 7)) / 2 for n in (1, 2, 3, 4, 5, 6)]
    assert found == pytest.approx(rise + fall)


def test_no_step_is_taken_at_a_rate_of_zero(build):
    found = rates(build(steps=10), 10)

    assert found[0] > found[1]  # without warm-up the fall begins at once
    assert found[-1] > 0


def test_the_rate_falls_towards_min_lr(build):
    found = rates(build(steps=1000, min_lr=1e-3), 1000)

    assert found[-1] == pytest.approx(1e-3, rel=1e-4)


def test_a_warm_up_as_long_as_the_run(build):
    assert rates(build(steps=4, warmup_steps=4), 4) == pytest.approx(
        [0.25e-2, 0.5e-2, 0.75e-2, 1e-2]
    )


@pytest.mark.parametrize("distributed", [False, True], ids=["plain", "distributed"])
def test_decay_shrinks_matrices_and_spares_norms(build, distributed):
    trainable = build(steps=1000, weight_decay=0.5, distributed=distributed)
    before = {name: p.detach().clone() for name, p in trainable.decoder.named_parameters()}

    trainable.model.zero_grad_buffer()
    trainable.schedule.step(1)
    trainable.optimizer.step()  # gradients are zero: decay is all that acts

    for name, parameter in trainable.decoder.named_parameters():
        factor = 1 - 1e-2 * 0.5 if parameter.dim() > 1 else 1
        torch.testing.assert_close(parameter.detach(), before[name] * factor, msg=name)


def test_gradients_are_clipped_to_the_recipes_norm(build):
    trainable = build(clip=0.5, epsilon=1e3, weight_decay=0.0)  # such an epsilon: plain descent
    before = {name: p.detach().clone() for name, p in trainable.decoder.named_parameters()}
    trainable.model.zero_grad_buffer()
    for parameter in trainable.decoder.parameters():
        parameter.main_grad.fill_(1.0)

    trainable.schedule.step(1)
    _, norm, _ = trainable.optimizer.step()

    count = sum(parameter.numel() for parameter in trainable.decoder.parameters())
    assert norm == pytest.approx(math.sqrt(count), rel=1e-4)
    moved = [(p.detach() - before[n]).double() for n, p in trainable.decoder.named_parameters()]
    rate = trainable.optimizer.param_groups[0]["lr"]
    length = torch.cat([part.flatten() for part in moved]).norm().item()
    assert length == pytest.approx(rate * 0.5 / 1e3, rel=0.05)
