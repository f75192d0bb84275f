"""Weights in 8 bits are compared with the full ones code by code."""

import numpy as np
import pytest
import torch
from support.inputs import whole_rows

from emu3_megatron.config import ModelConfig
from emu3_megatron.generation.agreement import Agreement, compare_eight_bits, joined
from emu3_megatron.generation.images import VisionPrompt, draw
from emu3_megatron.generation.options import EngineOptions
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta, vision_prompt, vision_span
from emu3_megatron.model import Decoder, build_decoder
from emu3_megatron.model.tensors import named_tensors

SMALL = ModelConfig(
    layers=2, hidden=64, heads=4, kv_heads=2, ffn=96, text="bytes", codes=64, init_std=0.2
)
VOCABULARY = SMALL.vocabulary()
PROMPTS = [VisionPrompt("a cat", Meta(4, 5)), VisionPrompt("a dog", Meta(3, 6))]
GREEDY = SamplingSettings(guidance=1.0, temperature=0)


@pytest.fixture(scope="module")
def decoder(mesh) -> Decoder:
    return build_decoder(SMALL).eval()


@pytest.fixture(scope="module")
def rounded(mesh) -> Decoder:
    """The weights that 8 bits stand for."""
    from emu3_kernels.weight_only import quantize

    decoder = build_decoder(SMALL).eval()
    for name, parameter in named_tensors(decoder):
        if "linear" in name:
            parameter.data = quantize(parameter).dequantized(parameter.dtype)
    return decoder


@torch.no_grad()
def log_probabilities(decoder: Decoder, prompt: VisionPrompt, codes_hw: np.ndarray) -> torch.Tensor:
    """Over all codes, before each code of the image."""
    span = vision_span(VOCABULARY, prompt.meta, codes_hw[None])
    begin = vision_prompt(VOCABULARY, prompt.caption, prompt.meta)
    tokens = np.append(begin, span[-prompt.meta.num_tokens - 1 :])
    logits_sv = decoder(whole_rows(torch.from_numpy(tokens).long()[None]), "logits")[0]
    behind = np.flatnonzero(tokens >= VOCABULARY.first_code) - 1
    return logits_sv[behind, VOCABULARY.first_code : VOCABULARY.size].double().log_softmax(-1)


def test_the_divergence_is_that_of_the_decoders(decoder, rounded):
    (codes_1hw,) = draw(decoder, VOCABULARY, PROMPTS[:1], GREEDY)
    full, ours = (log_probabilities(d, PROMPTS[0], codes_1hw[0]) for d in (decoder, rounded))

    (found,) = compare_eight_bits(decoder, VOCABULARY, PROMPTS[:1])

    kl = (full.exp() * (full - ours)).sum(-1)
    assert kl.max() > 1e-4
    np.testing.assert_allclose(found.kl, kl, rtol=0.02, atol=1e-6)
    np.testing.assert_array_equal(found.is_equal, full.argmax(-1) == ours.argmax(-1))


def test_greedy_images_are_equal_up_to_the_first_difference(decoder):
    in_eight = EngineOptions(eight_bit=True)
    full = draw(decoder, VOCABULARY, PROMPTS, GREEDY)
    ours = [draw(decoder, VOCABULARY, [p], GREEDY, options=in_eight)[0] for p in PROMPTS]

    found = compare_eight_bits(decoder, VOCABULARY, PROMPTS)

    for agreement, a, b in zip(found, full, ours, strict=True):
        different = np.flatnonzero(a.ravel() != b.ravel())
        assert agreement.first_difference == (different[0] if len(different) else None)
    assert joined(found).first_difference is not None, "nothing was tested"


def test_what_is_said_of_it():
    found = Agreement(np.array([True, True, False, True]), np.array([0.0, 0.1, 0.3, 0.0]))

    assert str(found) == (
        "75.00% of 4 likeliest codes equal, first difference at code 2, KL 1.00e-01 nats a code, "
        "at most 3.00e-01"
    )
