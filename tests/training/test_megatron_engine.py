"""Megatron's AdamW as recipes describe it, and the decoder that others may use meanwhile."""

import math

import pytest
import torch
from support.tiny import tiny_recipe

from emu3_megatron.training.engines import build_engine
from emu3_megatron.training.interfaces import EngineSetting


@pytest.fixture
def build(mesh, tmp_path):
    """A function that builds the tiny engine; nothing reads its packs."""

    def build(distributed=False, **optimizer):
        recipe = tiny_recipe(
            tmp_path / "none.pack",
            tmp_path,
            optimizer={"lr": 1e-2, "schedule": {"warmup_steps": 0}, **optimizer},
            parallel={"distributed_optimizer": distributed},
        )
        return build_engine(recipe.engine, EngineSetting.of(recipe))

    return build


def weights(engine):
    return {name: p.detach().clone() for name, p in engine.live.named_parameters()}


@pytest.mark.parametrize("distributed", [False, True], ids=["plain", "distributed"])
def test_decay_shrinks_matrices_and_spares_norms(build, distributed):
    engine = build(weight_decay=0.5, distributed=distributed)
    before = weights(engine)

    engine.model.zero_grad_buffer()
    engine.update(engine.grad_norm(), 1e-2)  # gradients are zero: decay is all that acts

    for name, parameter in engine.live.named_parameters():
        factor = 1 - 1e-2 * 0.5 if parameter.dim() > 1 else 1
        torch.testing.assert_close(parameter.detach(), before[name] * factor, msg=name)


def test_gradients_are_clipped_to_the_recipes_norm(build):
    engine = build(clip=0.5, epsilon=1e3, weight_decay=0.0)  # such an epsilon: plain descent
    before = weights(engine)
    engine.model.zero_grad_buffer()
    for parameter in engine.live.parameters():
        parameter.main_grad.fill_(1.0)

    norm = engine.grad_norm()
    engine.update(norm, 1e-2)

    count = sum(parameter.numel() for parameter in engine.live.parameters())
    assert norm == pytest.approx(math.sqrt(count), rel=1e-4)
    moved = [(p.detach() - before[n]).double() for n, p in engine.live.named_parameters()]
    length = torch.cat([part.flatten() for part in moved]).norm().item()
    assert length == pytest.approx(1e-2 * 0.5 / 1e3, rel=0.05)


def test_the_decoder_for_others_has_the_live_weights_without_dropout_or_gradients(build):
    engine = build()
    engine.live.train()

    with engine.decoder() as decoder:
        assert not decoder.training
        assert not torch.is_grad_enabled()
        for (name, one), other in zip(
            decoder.named_parameters(), engine.live.parameters(), strict=True
        ):
            assert one is other, name
    assert engine.live.training
