"""bf16 by autocast: convolutions alone, so that latents and pixels stay comparable."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.vision import blocks
from emu3_megatron.vision.blocks import SpatialNorm, Upsample
from emu3_megatron.vision.tokenizer import VisionTokenizer

FULL = ("encoder.conv_out", "decoder.conv_out", "time_", "quant_conv", "conv_y", "conv_b")


def half():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.fixture(scope="module")
def network(randomise):
    return randomise(VisionTokenizer(TokenizerNetwork(preset="tiny")))


def test_convolutions_in_bf16_but_where_latents_and_pixels_come_out(network, noise):
    types = {}
    hooks = [
        module.register_forward_hook(lambda _, i, out, name=name: types.update({name: out.dtype}))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.GroupNorm | nn.BatchNorm3d | SpatialNorm)
    ]
    with half(), torch.no_grad():
        latents = network.clip_latents(noise(1, 4, 3, 16, 16))
        pixels = network.decode_vectors(latents)
    for hook in hooks:
        hook.remove()

    assert latents.dtype == pixels.dtype == torch.float32
    for name, dtype in types.items():
        fp32 = "norm" in name or any(part in name for part in FULL)
        assert dtype == (torch.float32 if fp32 else torch.bfloat16), name
    assert sum(dtype == torch.bfloat16 for dtype in types.values()) > 40


def test_most_codes_and_pixels_stay(network, noise):
    images = noise(4, 3, 64, 64)
    codes = network.encode_images(images)
    pixels = network.decode_images(codes)
    with half():
        half_codes = network.encode_images(images)
        half_pixels = network.decode_images(codes)

    # latents move by 0.8% of their deviation: 97% of these 512 codes stay (99% if latents alone
    # are rounded)
    assert 0.94 <= (half_codes == codes).float().mean() < 1
    assert (half_pixels - pixels).square().mean().sqrt() <= 0.04 * pixels.std()


def test_gradients_are_finite_and_near_those_of_fp32(network, noise):
    def gradient():
        network.zero_grad()
        images = noise(1, 3, 32, 32)
        rebuilt = network.decode_vectors(network.image_latents(images), frames=1)
        (rebuilt[:, 0] - images).square().mean().backward()
        return torch.cat([w.grad.flatten() for w in network.parameters() if w.grad is not None])

    exact = gradient()
    with half():
        rough = gradient()

    assert rough.isfinite().all()
    assert F.cosine_similarity(exact, rough, dim=0) > 0.99
    network.zero_grad()


def test_folded_upsampling_is_the_published_one():
    torch.manual_seed(0)
    layer = Upsample(6).double()
    inputs = torch.randn(2, 6, 5, 7, dtype=torch.float64, requires_grad=True)

    def published(inputs):
        return layer.conv(F.interpolate(inputs, scale_factor=2.0, mode="nearest"))

    weights = (inputs, *layer.parameters())
    found, expected = layer(inputs), published(inputs)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, weights, slope), torch.autograd.grad(expected, weights, slope)
    )


@pytest.mark.parametrize("autocast", [False, True])
def test_fused_norms_are_the_layers(network, noise, monkeypatch, autocast):
    """What a GPU does with a kernel, here with the kernel's reference."""
    images = noise(2, 3, 32, 40)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
        latents = network.image_latents(images)
        pixels = network.decode_vectors(latents)
        monkeypatch.setattr(blocks, "_fused", lambda layer, hidden: True)
        fused = network.image_latents(images)
        torch.testing.assert_close(fused, latents, rtol=0, atol=1e-5)
        torch.testing.assert_close(network.decode_vectors(latents), pixels, rtol=0, atol=1e-5)
