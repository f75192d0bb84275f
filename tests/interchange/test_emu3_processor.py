"""transformers' Emu3Processor of an exported folder makes the prompts that training lays out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Emu3ForConditionalGeneration, Emu3Processor

from emu3_megatron.grammar import Meta, Turn, Vision, dialogue, vision_prompt
from emu3_megatron.interchange.exporting import export_folder
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary

VOCABULARY = Vocabulary.tiny(600)
CHECKPOINT = "transformers", torch.float32


@pytest.fixture(scope="module")
def folder(checkpoints, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "both"
    export_folder(checkpoints[CHECKPOINT], folder)
    return folder


@pytest.fixture(scope="module")
def processor(folder) -> Emu3Processor:
    return Emu3Processor.from_pretrained(folder)


@pytest.mark.parametrize(
    ("ratio", "area", "meta"), [("1:1", 512 * 512, Meta(64, 64)), ("4:3", 518_400, Meta(78, 104))]
)
def test_a_prompt_for_an_image_has_our_tokens(processor, ratio, area, meta):
    (tokens,) = processor(
        text="a cat, 3 m away",
        return_for_image_generation=True,
        ratio=ratio,
        image_area=area,
    )["input_ids"]

    assert tokens == vision_prompt(VOCABULARY, "a cat, 3 m away", meta).tolist()


@pytest.mark.slow
def test_a_question_on_an_image_is_the_dialogue_of_training(processor, folder, checkpoints):
    """The picture's codes come from transformers' model, in the place of its placeholders."""
    pixels = np.random.default_rng(0).integers(0, 256, (512, 528, 3), dtype=np.uint8)
    picture = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = processor.apply_chat_template([{"role": "user", "content": picture}])

    given = processor(text=text, images=Image.fromarray(pixels), return_tensors="pt")

    network = Emu3ForConditionalGeneration.from_pretrained(folder).eval().model
    with torch.no_grad():
        tokens = network.get_image_tokens(given["pixel_values"], given["image_sizes"])
    filled = given["input_ids"].clone()
    filled[filled == network.vocabulary_mapping.image_token_id] = tokens.to(filled)
    ours = VisionTokenizer.load(checkpoints[CHECKPOINT] / "tokenizer")
    codes = ours.encode_images(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1)[0]
    turn = Turn([Vision.image(codes.numpy()), "What is it?"], None)
    expected = np.concatenate([span.tokens for span in dialogue(VOCABULARY, [turn]).spans])
    differ = np.flatnonzero(filled[0].numpy() != expected)
    assert filled.shape[1] == len(expected)
    assert len(differ) <= codes.numel() / 500  # of pixels that were rounded otherwise
    assert (expected[differ] >= VOCABULARY.first_code).all()
