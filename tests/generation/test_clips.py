"""Clips from captions, and clips that go on."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

from emu3_megatron.config import ModelConfig
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.generation.clips import (
    Continuation,
    clip_meta,
    clip_of,
    continue_clips,
    encode_clip,
    save_clip,
)
from emu3_megatron.generation.images import VisionPrompt, draw
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta, Vision
from emu3_megatron.media.videos import read_info
from emu3_megatron.model import Decoder, build_decoder
from emu3_megatron.vision.tokenizer import VisionTokenizer

SMALL = ModelConfig(
    layers=2, hidden=64, heads=4, kv_heads=2, ffn=96, text="bytes", codes=64, init_std=0.2
)
VOCABULARY = SMALL.vocabulary()
SETTINGS = SamplingSettings(guidance=1, seed=3)
SECOND = Continuation(seen=1, more=1)


@pytest.fixture(scope="module")
def decoder(mesh) -> Decoder:
    return build_decoder(SMALL).eval()


@pytest.fixture(scope="module")
def tokenizer() -> VisionTokenizer:
    network = TokenizerNetwork(
        codebook_size=64, base_channels=32, channel_multiplier=(1, 1, 1, 1), num_res_blocks=1
    )
    return VisionTokenizer(network).eval()


def random_clip(frames: int, seed: int = 0) -> Vision:
    codes_fhw = np.random.default_rng(seed).integers(SMALL.codes, size=(frames, 2, 3))
    return clip_of(codes_fhw, fps=8)


def test_a_clip_has_whole_latent_frames():
    assert clip_meta(2, 3, seconds=2, fps=8) == Meta(2, 3, 4, 8, 2.0)
    assert clip_meta(2, 3, seconds=0.1, fps=8) == Meta(2, 3, 1, 8, 0.5)
    assert str(clip_meta(2, 3, seconds=5, fps=23.976)) == "2*3*30 23.976fps 5.005s"


def test_emu3_sees_two_seconds_and_adds_two():
    assert Continuation().window(clip_meta(64, 64)) == (clip_meta(64, 64, seconds=4), 12)


def test_a_short_clip_is_seen_whole_and_more_of_it_after_a_step():
    half_a_second = clip_meta(2, 3, 0.5, 8)

    seen = [SECOND.window(half_a_second, step)[1] for step in range(3)]

    assert seen == [1, 2, 2]


def test_clips_go_on_behind_what_is_there(decoder):
    begun = [random_clip(4), random_clip(1, seed=1)]

    longer = continue_clips(decoder, VOCABULARY, begun, ["waves", "snow"], SETTINGS, SECOND)

    assert [str(clip.meta) for clip in longer] == ["2*3*6 8fps 3s", "2*3*3 8fps 1.5s"]
    for before, after in zip(begun, longer, strict=True):
        np.testing.assert_array_equal(after.codes[: before.meta.frames], before.codes)


def test_the_model_sees_the_codes_of_the_last_second(decoder):
    begun = random_clip(5)

    (longer,) = continue_clips(decoder, VOCABULARY, [begun], ["waves"], SETTINGS, SECOND)

    prompt = VisionPrompt("waves", clip_meta(2, 3, 2, 8), first_frames=begun.codes[-2:])
    (drawn,) = draw(decoder, VOCABULARY, [prompt], SETTINGS)
    np.testing.assert_array_equal(longer.codes[5:], drawn[2:])


def test_a_saved_clip_plays_at_its_rate(tokenizer, tmp_path):
    save_clip(tokenizer, random_clip(4), tmp_path / "waves.mp4")

    info = read_info(tmp_path / "waves.mp4")
    assert (info.fps, info.seconds) == (8, 2)
    with av.open(str(tmp_path / "waves.mp4")) as file:
        assert [(f.width, f.height) for f in file.decode(video=0)] == [(24, 16)] * 16


def test_frames_that_were_given_are_written_as_they_are(tokenizer, tmp_path):
    white_tchw = torch.ones(6, 3, 16, 24)

    save_clip(tokenizer, random_clip(2), tmp_path / "waves.gif", white_tchw)

    with Image.open(tmp_path / "waves.gif") as gif:
        whites = []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            whites.append(np.asarray(gif.convert("RGB")).min() > 250)
    assert whites[0]
    assert not whites[-1]


def test_pixels_are_encoded_as_whole_latent_frames(tokenizer):
    pixels_tchw = torch.rand(10, 3, 16, 24) * 2 - 1

    clip = encode_clip(tokenizer, pixels_tchw, 8)

    assert str(clip.meta) == "2*3*2 8fps 1s"
    np.testing.assert_array_equal(clip.codes, tokenizer.encode_clips(pixels_tchw[None])[0])
