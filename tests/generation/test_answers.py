"""Text about images and clips, and images among text."""

import numpy as np
import pytest
from PIL import Image

from emu3_megatron import grammar
from emu3_megatron.config import ModelConfig
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.generation import interleaved
from emu3_megatron.generation.answers import answer, describe, say
from emu3_megatron.generation.interleaved import continue_documents, write_markdown
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Turn, Vision, open_prompt
from emu3_megatron.model import Decoder, build_decoder
from emu3_megatron.vision.tokenizer import VisionTokenizer

SMALL = ModelConfig(
    layers=2, hidden=64, heads=4, kv_heads=2, ffn=96, text="bytes", codes=64, init_std=0.2
)
VOCABULARY = SMALL.vocabulary()
SETTINGS = SamplingSettings(temperature=0)
IMAGE = Vision.image(np.arange(6).reshape(2, 3))
CLIP = Vision.clip(np.arange(8).reshape(2, 2, 2), fps=8, seconds=1)


@pytest.fixture(scope="module")
def decoder(mesh) -> Decoder:
    return build_decoder(SMALL).eval()


@pytest.fixture(scope="module")
def tokenizer() -> VisionTokenizer:
    network = TokenizerNetwork(
        codebook_size=64, base_channels=32, channel_multiplier=(1, 1, 1, 1), num_res_blocks=1
    )
    return VisionTokenizer(network).eval()


def test_images_and_clips_are_described_in_one_batch(decoder):
    captions = describe(decoder, VOCABULARY, [IMAGE, CLIP], SETTINGS, max_tokens=12)

    assert [len(caption) > 0 for caption in captions] == [True, True]


def test_an_answer_follows_the_dialogue(decoder):
    turns = [Turn([IMAGE, "what is it"], "a cat"), Turn([IMAGE, " or ", CLIP], None)]

    (answered,) = answer(decoder, VOCABULARY, [turns], SETTINGS, max_tokens=12)

    prompt = grammar.dialogue(VOCABULARY, turns).tokens
    assert [answered] == say(decoder, VOCABULARY, [prompt], SETTINGS, max_tokens=12)


def test_a_system_text_of_ones_own(decoder):
    turns = [Turn(["why"], None)]

    (answered,) = answer(
        decoder, VOCABULARY, [turns], SETTINGS, systems=["Be brief."], max_tokens=12
    )

    prompt = grammar.dialogue(VOCABULARY, turns, "Be brief.").tokens
    assert [answered] == say(decoder, VOCABULARY, [prompt], SETTINGS, max_tokens=12)


def test_text_goes_on_behind_texts_and_images(decoder):
    (said,) = continue_documents(
        decoder, VOCABULARY, [["look: ", IMAGE, " and"]], SETTINGS, max_tokens=12
    )

    assert not said.is_whole
    assert len(said.parts) <= 1


def said_instead(monkeypatch: pytest.MonkeyPatch, tokens: np.ndarray) -> None:
    monkeypatch.setattr(interleaved, "generate", lambda *_, **__: [tokens])


def test_images_that_the_model_draws_are_parts(decoder, monkeypatch):
    tokens = open_prompt(VOCABULARY, ["a cat:", IMAGE, "and waves:", CLIP])[1:]
    said_instead(monkeypatch, np.append(tokens, VOCABULARY.eos))

    (said,) = continue_documents(decoder, VOCABULARY, [["once"]], SETTINGS, max_tokens=99)

    assert said.is_whole
    first, image, second, clip = said.parts
    assert (first, second) == ("a cat:", "and waves:")
    np.testing.assert_array_equal(image.codes, IMAGE.codes)
    assert clip.meta == CLIP.meta


def test_an_unfinished_image_is_left_out(decoder, monkeypatch):
    said_instead(monkeypatch, open_prompt(VOCABULARY, ["a", IMAGE, "b", IMAGE])[1:-3])

    (said,) = continue_documents(decoder, VOCABULARY, [["once"]], SETTINGS, max_tokens=99)

    assert not said.is_whole
    first, _, second = said.parts
    assert (first, second) == ("a", "b")


def test_a_document_shows_its_images_where_they_stand(tokenizer, tmp_path):
    path = write_markdown(tokenizer, ["Once", " upon", IMAGE, " and ", CLIP], tmp_path / "story")

    text = "Once upon\n\n![2*3](1.png)\n\n and \n\n![2*2*2 8fps 1s](2.mp4)\n"
    assert path.read_text(encoding="utf-8") == text
    assert Image.open(tmp_path / "story" / "1.png").size == (24, 16)
    assert (tmp_path / "story" / "2.mp4").stat().st_size
