"""Images and clips to codes and back; saving and loading."""

import pytest
import torch

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.errors import InputError
from emu3_megatron.vision.tokenizer import VisionTokenizer


@pytest.fixture(scope="module")
def tokenizer(randomise) -> VisionTokenizer:
    network = TokenizerNetwork(preset="tiny", channel_multiplier=(1, 1, 1, 1))
    return randomise(VisionTokenizer(network))


def test_image_is_its_frame_four_times(tokenizer, noise):
    images = noise(2, 3, 32, 24)
    codes = tokenizer.encode_images(images)
    assert codes.unique().numel() > 10
    as_clips = tokenizer.encode_clips(images.unsqueeze(1).expand(-1, 4, -1, -1, -1))
    assert torch.equal(codes, as_clips.squeeze(1))


def test_decoded_image_is_frame_0(tokenizer):
    codes = torch.randint(512, (2, 4, 3))
    clip = tokenizer.decode_clips(codes.unsqueeze(1))
    assert not torch.allclose(clip[:, 0], clip[:, 1], atol=1e-2)
    torch.testing.assert_close(tokenizer.decode_images(codes), clip[:, 0], atol=1e-5, rtol=0)


def test_latent_sees_no_later_frame(tokenizer, noise):
    clip = noise(1, 12, 3, 16, 16)
    other = clip.clone()
    other[:, 8:] = 0  # frames of latent 2
    with torch.no_grad():
        latents, others = tokenizer.clip_latents(clip), tokenizer.clip_latents(other)
    assert torch.equal(latents[:, :, :2], others[:, :, :2])
    assert not torch.allclose(latents[:, :, 2], others[:, :, 2])


def test_latent_sees_earlier_frames(tokenizer, noise):
    clip = noise(1, 12, 3, 16, 16)
    other = clip.clone()
    other[:, 7] = 0
    with torch.no_grad():
        latents, others = tokenizer.clip_latents(clip), tokenizer.clip_latents(other)
    assert not torch.equal(latents[:, :, 2], others[:, :, 2])


def test_independent_groups_are_clips_of_four(tokenizer, noise):
    clip = noise(1, 8, 3, 16, 16)
    codes = tokenizer.encode_clips(clip, independent_groups=True)
    assert torch.equal(codes[:, 1:], tokenizer.encode_clips(clip[:, 4:]))
    pixels = tokenizer.decode_clips(codes, independent_groups=True)
    assert pixels.shape == clip.shape
    alone = tokenizer.decode_clips(codes[:, 1:])
    torch.testing.assert_close(pixels[:, 4:], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("frames", "latents"), [(4, 1), (7, 1), (8, 2), (11, 2)])
def test_clip_length(tokenizer, frames, latents, noise):
    assert tokenizer.encode_clips(noise(1, frames, 3, 8, 16)).shape == (1, latents, 1, 2)


def test_too_short_a_clip(tokenizer, noise):
    with pytest.raises(InputError, match="3 frames: at least 4"):
        tokenizer.encode_clips(noise(1, 3, 3, 16, 16))


def test_sides_must_be_divisible(tokenizer, noise):
    with pytest.raises(InputError, match="20x16 pixels"):
        tokenizer.encode_images(noise(1, 3, 16, 20))


def test_no_codes_in_train_mode(tokenizer, noise):
    tokenizer.train()
    try:
        with pytest.raises(RuntimeError, match="eval"):
            tokenizer.encode_images(noise(1, 3, 16, 16))
    finally:
        tokenizer.eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_search_in_half_precision_is_refused(tokenizer, dtype):
    latents = torch.zeros(1, 4, 1, 2, 2, dtype=dtype)
    with pytest.raises(RuntimeError, match="in fp32 or fp64"):
        tokenizer.quantize.nearest(latents)


def test_saved_and_loaded(tokenizer, tmp_path, noise):
    tokenizer.save(tmp_path / "tokenizer")
    loaded = VisionTokenizer.load(tmp_path / "tokenizer")
    images = noise(1, 3, 32, 32)
    assert loaded.network == tokenizer.network
    assert torch.equal(loaded.encode_images(images), tokenizer.encode_images(images))


def test_truncated_weights(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        VisionTokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file(tokenizer, tmp_path, name):
    tokenizer.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=name):
        VisionTokenizer.load(tmp_path)


def test_the_folder_of_the_run_is_told_where_its_tokenizer_is(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    with pytest.raises(InputError, match=f"cannot be read .*; name {tmp_path}/tokenizer"):
        VisionTokenizer.load(tmp_path)


def test_folder_of_something_else(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "Emu3"}', encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.json: not a tokenizer"):
        VisionTokenizer.load(tmp_path)


def test_weights_of_another_size(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(
        config.read_text(encoding="utf-8").replace('"codebook_size": 512', '"codebook_size": 256'),
        encoding="utf-8",
    )
    with pytest.raises(InputError, match=r"model\.safetensors: not the weights"):
        VisionTokenizer.load(tmp_path)
