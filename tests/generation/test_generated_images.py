"""Captions to grids of codes, frames to whole clips, images to text."""

import numpy as np
import pytest
import torch
from PIL import Image

from emu3_megatron.config import ModelConfig
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.errors import InputError
from emu3_megatron.generation.images import (
    VisionPrompt,
    draw,
    generate_images,
    save_image,
)
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta, captioned_clip
from emu3_megatron.media.images import to_image
from emu3_megatron.model import Decoder, build_decoder
from emu3_megatron.vision.tokenizer import VisionTokenizer

SMALL = ModelConfig(
    layers=2, hidden=64, heads=4, kv_heads=2, ffn=96, text="bytes", codes=64, init_std=0.2
)
VOCABULARY = SMALL.vocabulary()
SETTINGS = SamplingSettings(seed=3)


@pytest.fixture(scope="module")
def decoder(mesh) -> Decoder:
    return build_decoder(SMALL).eval()


def random_codes(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(SMALL.codes, size=shape)


def test_an_image_for_each_caption(decoder):
    codes_nhw = generate_images(decoder, VOCABULARY, ["a cat", "two dogs"], 3, 2, SETTINGS)

    assert codes_nhw.shape == (2, 3, 2)
    assert 0 <= codes_nhw.min() <= codes_nhw.max() < SMALL.codes
    assert not np.array_equal(codes_nhw[0], codes_nhw[1])


def test_the_negative_caption_matters(decoder):
    greedy = SamplingSettings(temperature=0, guidance=5)
    draw_away_from = lambda negative: draw(
        decoder, VOCABULARY, [VisionPrompt("a cat", Meta(4, 4), negative)], greedy
    )

    assert not np.array_equal(draw_away_from(""), draw_away_from("blurred"))


def test_images_and_clips_of_any_grids_in_one_batch(decoder):
    metas = [Meta(2, 3), Meta(1, 4, 2, 8, 1), Meta(3, 1)]

    drawn = draw(decoder, VOCABULARY, [VisionPrompt("x", meta) for meta in metas], SETTINGS)

    assert [codes.shape for codes in drawn] == [(1, 2, 3), (2, 1, 4), (1, 3, 1)]


def test_a_clip_goes_on_from_its_first_frames(decoder):
    meta, first_frames = Meta(2, 3, 4, 8, 2), random_codes(2, 2, 3)

    prompt = VisionPrompt("waves", meta, first_frames=first_frames)
    (codes_fhw,) = draw(decoder, VOCABULARY, [prompt], SETTINGS)

    assert codes_fhw.shape == (4, 2, 3)
    np.testing.assert_array_equal(codes_fhw[:2], first_frames)


def test_the_prompt_of_a_continued_clip_is_the_beginning_of_its_document():
    codes_fhw, meta = random_codes(4, 2, 3), Meta(2, 3, 4, 8, 2)
    document = captioned_clip(VOCABULARY, "waves", codes_fhw, fps=8, seconds=2).tokens

    prompt = VisionPrompt("waves", meta, first_frames=codes_fhw[:3]).request(VOCABULARY).prompt

    np.testing.assert_array_equal(prompt, document[: len(prompt)])
    # One frame is to come, of two rows of three codes each with EOL, and EOF; then EOI and EOS.
    assert len(document) - len(prompt) == 2 * 4 + 1 + 2


@pytest.mark.parametrize("frames", [0, 4, 5])
def test_first_frames_that_leave_nothing_to_draw(decoder, frames):
    meta, first_frames = Meta(2, 3, 4, 8, 2), random_codes(frames, 2, 3)

    with pytest.raises(InputError, match="first frames"):
        draw(decoder, VOCABULARY, [VisionPrompt("", meta, first_frames=first_frames)], SETTINGS)


def test_a_saved_image_holds_what_the_tokenizer_decodes(tmp_path):
    network = TokenizerNetwork(
        codebook_size=64, base_channels=32, channel_multiplier=(1, 1, 1, 1), num_res_blocks=1
    )
    tokenizer = VisionTokenizer(network).eval()
    codes_hw = random_codes(2, 3)

    save_image(tokenizer, codes_hw, tmp_path / "deep" / "cat.png")

    expected = to_image(tokenizer.decode_images(torch.from_numpy(codes_hw)[None])[0])
    with Image.open(tmp_path / "deep" / "cat.png") as saved:
        assert saved.size == (24, 16)
        np.testing.assert_array_equal(saved, expected)
