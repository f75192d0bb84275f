"""The perceptual losses that a recipe can name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.ndimage import convolve1d

from emu3_megatron.config.tokenizer_losses import PerceptualConfig
from emu3_megatron.errors import InputError
from emu3_megatron.tokenizer_training.losses.perceptual import (
    GradientSsim,
    build_perceptual,
    perceptual_b,
)


def pairs(side=24, samples=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(samples, 3, side, side, generator=generator, dtype=dtype) * 2 - 1
    return one, one + 0.3 * torch.randn(one.shape, generator=generator, dtype=dtype)


def ssim_by_hand(one: np.ndarray, other: np.ndarray) -> float:
    """Of pixels [c, h, w] in [-1, 1], with scipy's convolutions."""
    places = np.arange(11) - 5
    window = np.exp(-(places**2) / 4.5)
    window /= window.sum()

    def mean(x):
        for axis in (1, 2):
            x = convolve1d(x, window, axis)
        return x[:, 5:-5, 5:-5]

    covariance = mean(one * other) - mean(one) * mean(other)
    variances = mean(one**2) - mean(one) ** 2 + mean(other**2) - mean(other) ** 2
    c1, c2 = 0.02**2, 0.06**2
    luminance = (2 * mean(one) * mean(other) + c1) / (mean(one) ** 2 + mean(other) ** 2 + c1)
    return (luminance * (2 * covariance + c2) / (variances + c2)).mean()


def by_hand(one: np.ndarray, other: np.ndarray) -> float:
    values = []
    while True:
        edges = sum(np.abs(np.diff(one - other, axis=axis)).mean() for axis in (1, 2))
        values.append(edges + 1 - ssim_by_hand(one, other))
        if one.shape[1] < 22 or len(values) == 3:
            return float(np.mean(values))
        one, other = (x.reshape(3, x.shape[1] // 2, 2, -1, 2).mean((2, 4)) for x in (one, other))


@pytest.mark.parametrize("side", [12, 24, 48])
def test_gradient_ssim_is_that_of_its_formula(side):
    one, other = pairs(side)

    expected = [by_hand(x.numpy(), y.numpy()) for x, y in zip(one, other, strict=True)]
    assert GradientSsim()(one, other).tolist() == pytest.approx(expected, rel=1e-9)


def test_gradient_of_gradient_ssim_is_that_of_finite_differences():
    one, other = pairs(side=8, samples=1)

    assert torch.autograd.gradcheck(GradientSsim(), (one, other.requires_grad_()))


def test_equal_images_are_at_0():
    one, _ = pairs()

    assert GradientSsim()(one, one).abs().max() < 1e-12


@pytest.mark.parametrize("shape", [(2, 3, 24, 24), (2, 4, 3, 24, 24)])
def test_a_clip_is_the_mean_of_its_frames(shape):
    one, other = (x.view(shape) for x in pairs(samples=np.prod(shape) // (3 * 24 * 24)))
    loss = GradientSsim()

    values = perceptual_b(loss, one, other)

    frames = [x.reshape(2, -1, 3, 24, 24) for x in (one, other)]
    expected = [loss(x, y).mean() for x, y in zip(*frames, strict=True)]
    torch.testing.assert_close(values, torch.stack(expected))


def test_gradient_ssim_is_fp32_under_autocast():
    one, other = pairs(dtype=torch.float32)

    with torch.autocast("cpu", torch.bfloat16):
        within = GradientSsim()(one, other)

    assert torch.equal(within, GradientSsim()(one, other))


def test_a_recipe_names_the_loss():
    build = lambda **values: build_perceptual(PerceptualConfig(**values), torch.device("cpu"))

    assert build() is None
    assert build(kind="gradient_ssim").name == "gradient_ssim"
    with pytest.raises(InputError, match=r"gone.pth: cannot be read"):
        build(kind="lpips", weights=Path("gone.pth"), heads=Path("gone.pth"))


@pytest.mark.parametrize("missing", ["weights", "heads"])
def test_lpips_without_a_file_is_refused(missing):
    given = {"weights": "vgg16-397923af.pth", "heads": "vgg.pth"}
    del given[missing]

    with pytest.raises(ValidationError, match=f"kind=lpips needs {missing}, a file"):
        PerceptualConfig(kind="lpips", **given)


def test_pixels_too_few_for_lpips_are_refused():
    lpips = PerceptualConfig(kind="lpips", weights="vgg16-397923af.pth", heads="vgg.pth")

    lpips.require_sides(32, "data.crop")
    PerceptualConfig().require_sides(8, "data.crop")
    with pytest.raises(ValueError, match=r"data.crop: 24 pixels are under the 32"):
        lpips.require_sides(24, "data.crop")
