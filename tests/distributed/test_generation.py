"""Tensor and sequence parallel ranks all say what one process says."""

import numpy as np
import pytest
from support.processes import run_processes

from emu3_megatron import parallel
from emu3_megatron.config import ModelConfig
from emu3_megatron.config.training import BackendConfig, ParallelConfig
from emu3_megatron.generation.generator import generate
from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta, Vision, open_prompt, vision_prompt
from emu3_megatron.model import build_decoder
from emu3_megatron.model.decoder import view_for_inference

SMALL = ModelConfig(
    layers=2, hidden=64, heads=4, kv_heads=2, ffn=96, text="bytes", codes=64, init_std=0.2
)


def say(layout: ParallelConfig) -> list[list[int]]:
    """An image and a caption, drawn at random by a decoder in training."""
    parallel.start(layout.tensor).seed(0, 0)
    live = build_decoder(SMALL, layout).train()
    decoder = view_for_inference(live, SMALL, layout, BackendConfig())
    vocabulary = SMALL.vocabulary()
    prompt, negative = (vision_prompt(vocabulary, text, Meta(3, 4)) for text in ("a cat", ""))
    image = Request(prompt, negative, stop=(vocabulary.vision_end,))
    shown = open_prompt(vocabulary, [Vision.image(np.arange(4).reshape(2, 2))])
    caption = Request(shown, shown[:1], stop=(vocabulary.eos, vocabulary.vision_start))

    said = generate(decoder, vocabulary, [image, caption], SamplingSettings(), max_tokens=20)

    assert live.config.sequence_parallel is layout.sequence
    assert live.training
    return [tokens.tolist() for tokens in said]


@pytest.fixture(scope="module")
def alone() -> list[list[int]]:
    return run_processes(say, 1, ParallelConfig())[0]


@pytest.mark.parametrize("sequence", [False, True], ids=["tensor", "sequence"])
def test_two_ranks_say_what_one_says(alone, sequence):
    said = run_processes(say, 2, ParallelConfig(tensor=2, sequence=sequence))

    assert said == [alone, alone]
