"""Discriminators, their losses, and when they are felt."""

import pytest
import torch
from torch import nn

from emu3_megatron.config.tokenizer_losses import AdversarialConfig
from emu3_megatron.tokenizer_training.adversarial.networks import Discriminators
from emu3_megatron.tokenizer_training.adversarial.rules import (
    adaptive_weight,
    discriminators_train,
    generator_weight,
)
from emu3_megatron.tokenizer_training.adversarial.terms import (
    LeCam,
    discriminator_term,
    generator_term,
    logit_sums,
)

IMAGES = (2, 3, 24, 24)
CLIPS = (2, 4, 3, 24, 24)


def section(**values):
    return AdversarialConfig.model_validate({"channels": 8, "layers": 1, **values})


def discriminators(dtype=torch.float64, has_clips=True, **values):
    """Of weights so large that the hinge cuts some logits off."""
    torch.manual_seed(0)
    network = Discriminators(section(**values), has_clips).to(dtype)
    for parameter in network.parameters():
        nn.init.normal_(parameter, 0, 0.2)
    return network


def noise(*shape, seed=1, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def logits(seed=1):
    """Of three clips, by two discriminators."""
    return [noise(3, 5, seed=seed) * 2, noise(3, 2, seed=seed + 10) * 2]


# --- networks


def test_shape_of_the_published_discriminator():
    """taming-transformers' NLayerDiscriminator: 2,765,633 parameters with BatchNorm's."""
    network = Discriminators(AdversarialConfig(), has_clips=False)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]

    assert [conv.out_channels for conv in convolutions] == [64, 128, 256, 512, 1]
    assert [conv.stride[0] for conv in convolutions] == [2, 2, 2, 1, 1]
    # ours has a bias below the three norms: 128 + 256 + 512 more
    assert sum(p.numel() for p in network.parameters()) == 2_765_633 + 896
    assert network(torch.zeros(1, 3, 256, 256))[0].shape == (1, 30 * 30)


@pytest.mark.parametrize("shape", [IMAGES, CLIPS])
def test_every_sample_gets_its_own_logits(shape):
    network = discriminators()
    pixels = noise(*shape)

    together = network(pixels)
    alone = [network(pixels[i : i + 1]) for i in range(2)]

    assert len(together) == (1 if shape == IMAGES else 2)
    for index, values in enumerate(together):
        torch.testing.assert_close(values, torch.cat([one[index] for one in alone]))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_receptive_field_is_what_a_logit_sees(layers):
    network = discriminators(layers=layers, norm="none")
    field = section(layers=layers).receptive_field
    for conv in (m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)):
        nn.init.constant_(conv.weight, 0.1)
    clip = torch.ones(1, 3, 4, 3 * field, 3 * field, dtype=torch.float64, requires_grad=True)

    for logits_of in (network.clips(clip)[:, :, 0], network.frames(clip[:, :, 0])):
        middle = logits_of.shape[-1] // 2
        (seen,) = torch.autograd.grad(logits_of[0, 0, middle, middle], clip)
        rows = seen.abs().sum((0, 1, 2, 4)).nonzero()
        assert rows.max() - rows.min() + 1 == field


def test_a_crop_under_the_receptive_field_is_refused():
    assert section(layers=3).receptive_field == 70
    section(layers=3).require_sides(70, "data.crop")
    with pytest.raises(ValueError, match=r"data.crop: 64 pixels are under the 70 .* fewer layers"):
        section(layers=3).require_sides(64, "data.crop")


@pytest.mark.parametrize("norm", ["group", "none"])
def test_bug_6_two_forwards_one_backward(norm):
    """BatchNorm changed its buffers in place between the two; nothing here has any."""
    network = discriminators(norm=norm).train()

    real, fake = network(noise(*CLIPS)), network(noise(*CLIPS, seed=2))
    sum(values.square().sum() for values in (*real, *fake)).backward()

    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())
    assert not list(network.buffers())


@pytest.mark.parametrize("norm", ["group", "none"])
def test_gradient_to_the_pixels_is_that_of_finite_differences(norm):
    network = discriminators(norm=norm, has_clips=False)
    term = lambda pixels: generator_term(network(pixels))

    assert torch.autograd.gradcheck(term, noise(1, 3, 8, 8).requires_grad_())


def test_logits_are_fp32_under_autocast():
    network = discriminators(torch.float32)

    with torch.autocast("cpu", torch.bfloat16):
        values = network(noise(*CLIPS, dtype=torch.float32))

    assert {logits.dtype for logits in values} == {torch.float32}


# --- terms


def hinge_by_hand(real, fake):
    """As a loop over numbers."""
    total = 0.0
    for one, other in zip(real, fake, strict=True):
        true = sum(max(0.0, 1 - x) for x in one.tolist()) / len(one)
        rebuilt = sum(max(0.0, 1 + x) for x in other.tolist()) / len(other)
        total += (true + rebuilt) / 2
    return total / len(real)


def test_hinge_is_that_of_a_loop_over_numbers():
    real, fake = logits(1), logits(2)

    values = discriminator_term(real, fake)

    for sample in range(3):
        by_hand = hinge_by_hand([x[sample] for x in real], [x[sample] for x in fake])
        assert values[sample].item() == pytest.approx(by_hand, rel=1e-12)


def test_generator_term_is_minus_the_mean_logit():
    frames, clips = fake = logits()

    torch.testing.assert_close(generator_term(fake), -(frames.mean(1) + clips.mean(1)) / 2)


def test_gradients_of_the_terms_are_those_of_finite_differences():
    real, fake = logits(1), logits(2)
    inputs = [x.requires_grad_() for x in (*real, *fake)]

    assert torch.autograd.gradcheck(lambda *x: discriminator_term(x[:2], x[2:]), inputs)
    assert torch.autograd.gradcheck(lambda *x: generator_term(x), fake)


def test_bug_5_both_sides_of_the_discriminator_term_have_a_gradient():
    """With logits and targets exchanged, the rebuilt side had none."""
    real, fake = logits(1), logits(2)
    inputs = [x.requires_grad_() for x in (*real, *fake)]

    discriminator_term(real, fake).sum().backward()

    assert all(x.grad.abs().sum() > 0 for x in inputs)
    assert all((x.grad <= 0).all() for x in real)
    assert all((x.grad >= 0).all() for x in fake)


def test_terms_are_fp32_for_logits_of_bf16():
    values = [x.bfloat16() for x in logits()]

    assert generator_term(values).dtype == discriminator_term(values, values).dtype == torch.float32


# --- LeCam


def updated(times=1):
    lecam = LeCam(decay=0.9)
    for seed in range(times):
        lecam.update(logit_sums(logits(seed), logits(seed + 50)))
    return lecam


def test_lecam_is_that_of_its_formula():
    lecam, real, fake = updated(3), logits(7), logits(8)
    by_hand = torch.zeros(3, dtype=torch.float64)
    for index in range(2):
        mean_real, mean_fake = lecam.means[:, index].tolist()
        for sample in range(3):
            above = (real[index][sample] - mean_fake).clamp(min=0) ** 2
            below = (mean_real - fake[index][sample]).clamp(min=0) ** 2
            by_hand[sample] += (above.mean() + below.mean()) / 2

    torch.testing.assert_close(lecam(real, fake), by_hand)


def test_gradient_of_lecam_is_that_of_finite_differences():
    inputs = [x.requires_grad_() for x in (*logits(7), *logits(8))]

    assert torch.autograd.gradcheck(lambda *x: updated()(x[:2], x[2:]), inputs)


def test_lecam_averages_follow_the_step_means():
    lecam, expected = LeCam(decay=0.9), None
    for seed in range(4):
        real, fake = logits(seed), logits(seed + 50)
        lecam.update(logit_sums(real, fake))
        means = torch.stack([torch.stack([x.mean() for x in side]) for side in (real, fake)])
        expected = means if expected is None else 0.9 * expected + 0.1 * means

    torch.testing.assert_close(lecam.means, expected)


def test_lecam_averages_do_not_depend_on_groups_and_ranks():
    real, fake = logits(1), logits(2)
    parts = [logit_sums([x[i] for x in real], [x[i] for x in fake]) for i in ([[0], [1, 2]])]
    whole, split = LeCam(), LeCam()

    whole.update(logit_sums(real, fake))
    split.update(sum(parts))

    torch.testing.assert_close(whole.means, split.means)


def test_a_step_without_clips_keeps_the_averages_of_clips():
    lecam = updated()
    before = lecam.means.clone()

    lecam.update(logit_sums(logits(5)[:1], logits(6)[:1]))

    assert not torch.equal(lecam.means[:, 0], before[:, 0])
    assert torch.equal(lecam.means[:, 1], before[:, 1])
    assert lecam.updates.tolist() == [2, 1]


def test_bug_10_lecam_averages_are_in_the_state():
    lecam, resumed = updated(3), LeCam(decay=0.9)
    resumed.load_state_dict(lecam.state_dict())

    for one in (lecam, resumed):
        one.update(logit_sums(logits(8), logits(9)))

    assert torch.equal(lecam.means, resumed.means)
    assert torch.equal(lecam(logits(7), logits(8)), resumed(logits(7), logits(8)))


def test_lecam_is_0_before_its_first_average():
    assert LeCam()(logits(1), logits(2)).tolist() == [0, 0, 0]


# --- when, and how strongly


def test_bugs_7_and_8_the_discriminators_train_before_they_are_felt():
    """By the step of the run, which two optimizers share, and not by calls of an optimizer."""
    rules = section(start=10, warmup=5, weight=0.3)

    assert [discriminators_train(rules, step) for step in (9, 10)] == [False, True]
    assert [generator_weight(rules, step) for step in (9, 10, 14, 15)] == [0, 0, 0, 0.3]


def test_adaptive_weight_is_a_clamped_ratio_of_norms():
    weight = lambda one, other: adaptive_weight(torch.tensor(one), torch.tensor(other)).item()

    assert weight(3.0, 2.0) == pytest.approx(1.5, rel=1e-4)
    assert weight(3.0, 0.0) == 1e4
    assert weight(0.0, 2.0) == 0


def test_discriminators_that_are_never_felt_are_refused():
    section(start=10, warmup=5).require_steps(15)
    with pytest.raises(ValueError, match=r"felt from step 15 on .* after the last, 14; lower"):
        section(start=10, warmup=5).require_steps(14)
