"""Our tokenizer against transformers' Emu3VQVAE, on the same random weights."""

import re

import pytest
import torch
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.vision.tokenizer import VisionTokenizer

SMALL = TokenizerNetwork(
    codebook_size=256,
    base_channels=32,
    channel_multiplier=(1, 2, 2, 4),
    num_res_blocks=2,
)
# Our parameter names, which are the released checkpoint's, to those of transformers.
RENAMES = (
    (r"\.down\.", ".down_block.down."),
    (r"\.up\.", ".up_block.up."),
    (r"\.mid\.", ".middle_block."),
    (r"attn_1\.norm\.", "attn_norm."),
    (r"attn\.(\d)\.norm\.", r"attn_norms.\1."),
    (r"\.([qkv])\.(weight|bias)", r".\1_proj.\2"),
    (r"\.proj_out\.", ".out_proj."),
)


def to_transformers(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        if name.endswith("_proj.weight"):
            tensor = tensor.flatten(1)  # a linear layer there, a 1x1 convolution here
        renamed[name] = tensor
    return renamed


@pytest.fixture(scope="module")
def ours(randomise) -> VisionTokenizer:
    return randomise(VisionTokenizer(SMALL))


@pytest.fixture(scope="module")
def theirs(ours) -> Emu3VQVAE:
    model = Emu3VQVAE(
        Emu3VQVAEConfig(
            codebook_size=SMALL.codebook_size,
            base_channels=SMALL.base_channels,
            channel_multiplier=SMALL.channel_multiplier,
            num_res_blocks=SMALL.num_res_blocks,
            hidden_size=SMALL.level_channels[-1],
        )
    )
    model.load_state_dict(to_transformers(ours.state_dict()))
    return model.eval()


@torch.no_grad()
def codes_of_theirs(model: Emu3VQVAE, pixels_btchw: torch.Tensor) -> torch.Tensor:
    """Its own `encode` crops clips by (time, height) instead of (height, width): go around it."""
    latents_bfchw = model.encoder(pixels_btchw)
    latents_bcfhw = model.quant_conv(latents_bfchw.transpose(1, 2))
    return model.quantize(latents_bcfhw.transpose(1, 2))


@pytest.mark.parametrize("size", [(64, 48), (40, 72)])
def test_image_codes_equal(ours, theirs, noise, size):
    images = noise(2, 3, *size)
    repeated = images.unsqueeze(1).expand(-1, 4, -1, -1, -1)
    codes = ours.encode_images(images)
    assert codes.unique().numel() > 20  # else equality would say little
    assert torch.equal(codes, codes_of_theirs(theirs, repeated).squeeze(1))


@pytest.mark.parametrize(("frames", "size"), [(8, (64, 48)), (11, (40, 72))])
def test_clip_codes_equal(ours, theirs, noise, frames, size):
    clips = noise(2, frames, 3, *size)
    codes = ours.encode_clips(clips)
    assert codes.shape == (2, frames // 4, size[0] // 8, size[1] // 8)
    assert codes.unique().numel() > 20
    assert torch.equal(codes, codes_of_theirs(theirs, clips))


def test_decoded_images_equal(ours, theirs):
    codes = torch.randint(SMALL.codebook_size, (2, 8, 6), generator=torch.manual_seed(2))
    with torch.no_grad():
        expected = theirs.decode(codes)
    assert expected.std() > 0.05
    torch.testing.assert_close(ours.decode_images(codes), expected, atol=1e-4, rtol=0)


def test_decoded_clips_equal(ours, theirs):
    codes = torch.randint(SMALL.codebook_size, (2, 2, 5, 9), generator=torch.manual_seed(3))
    with torch.no_grad():
        expected = theirs.decode(codes)
    assert expected.std() > 0.05
    torch.testing.assert_close(ours.decode_clips(codes), expected, atol=1e-4, rtol=0)


def test_full_size_is_the_published_one():
    with torch.device("meta"):
        tokenizer = VisionTokenizer(TokenizerNetwork(preset="full"))
        counterpart = Emu3VQVAE(Emu3VQVAEConfig())
    assert sum(p.numel() for p in tokenizer.parameters()) == 270_740_287
    ours = {name: t.shape for name, t in to_transformers(tokenizer.state_dict()).items()}
    assert ours == {name: t.shape for name, t in counterpart.state_dict().items()}
