"""Clips from captions, and clips that go on."""

import av
import numpy as np
import pytest
import torch

from emu3_megatron.config import ModelConfig
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.errors import InputError
from emu3_megatron.generation import clips
from emu3_megatron.generation.clips import (
    Clip,
    Continuation,
    clip_meta,
    continue_clips,
    decode_clip,
    save_clip,
)
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta
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


def noise(frames: int) -> Clip:
    generator = torch.Generator().manual_seed(0)
    return Clip(torch.rand(frames, 3, 16, 24, generator=generator) * 2 - 1, fps=8)


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


def test_three_frames_do_not_go_on():
    with pytest.raises(InputError, match="fewer than 4 frames"):
        SECOND.window(noise(3))


def test_a_clip_goes_on_and_stays_as_it_was(decoder, tokenizer):
    begun = [noise(16), noise(10)]

    longer = continue_clips(
        decoder, VOCABULARY, tokenizer, begun, ["waves", "snow"], SETTINGS, SECOND
    )

    assert [len(clip.pixels_tchw) for clip in longer] == [16 + 8, 10 + 8]
    for before, after in zip(begun, longer, strict=True):
        torch.testing.assert_close(after.pixels_tchw[: len(before.pixels_tchw)], before.pixels_tchw)


def test_the_model_sees_the_last_second_encoded_as_a_clip(
    decoder, tokenizer, monkeypatch: pytest.MonkeyPatch
):
    asked = []

    def draw(decoder, vocabulary, prompts, settings, **options):
        asked.extend(prompts)
        return clips_draw(decoder, vocabulary, prompts, settings, **options)

    clips_draw = clips.draw
    monkeypatch.setattr(clips, "draw", draw)
    begun = noise(16)

    continue_clips(decoder, VOCABULARY, tokenizer, [begun], ["waves"], SETTINGS, SECOND)

    (prompt,) = asked
    assert prompt.meta == Meta(2, 3, 4, 8, 2.0)
    last_second = tokenizer.encode_clips(begun.pixels_tchw[None, -8:])[0].numpy()
    np.testing.assert_array_equal(prompt.first_frames, last_second)


def test_a_saved_clip_plays_at_its_rate(tokenizer, tmp_path):
    codes_fhw = np.random.default_rng(0).integers(64, size=(4, 2, 3))

    save_clip(decode_clip(tokenizer, codes_fhw, 8), tmp_path / "waves.mp4")

    info = read_info(tmp_path / "waves.mp4")
    assert (info.fps, info.seconds) == (8, 2)
    with av.open(str(tmp_path / "waves.mp4")) as file:
        assert [(f.width, f.height) for f in file.decode(video=0)] == [(24, 16)] * 16
