"""Rows in a batch say what they say alone, and what the decoder says without a cache."""

import numpy as np
import pytest
import torch
from support.inputs import whole_rows

from emu3_megatron.config import ModelConfig
from emu3_megatron.errors import InputError
from emu3_megatron.generation.forward import DecodeForward
from emu3_megatron.generation.generator import Generator, generate
from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.raster import Choice, Raster
from emu3_megatron.generation.sampling import SamplingSettings, guide
from emu3_megatron.grammar import GrammarError, Meta, vision_prompt
from emu3_megatron.model import Decoder, build_decoder

SMALL = ModelConfig(
    layers=2, hidden=64, heads=4, kv_heads=2, ffn=96, text="bytes", codes=64, init_std=0.2
)
VOCABULARY = SMALL.vocabulary()
GREEDY = SamplingSettings(temperature=0)
EOI = VOCABULARY.vision_end


@pytest.fixture(scope="module")
def decoder(mesh) -> Decoder:
    return build_decoder(SMALL).eval()


def image(caption: str, height: int, width: int) -> Request:
    """A request for an image, led away from no caption."""
    prompts = [vision_prompt(VOCABULARY, text, Meta(height, width)) for text in (caption, "")]
    return Request(*prompts, stop=(EOI,))


def text(beginning: str) -> Request:
    prompt = np.append(VOCABULARY.bos, VOCABULARY.encode(beginning))
    return Request(prompt, prompt[:1], stop=(VOCABULARY.eos, VOCABULARY.vision_start))


MIXED = [
    image("a cat", 3, 5),
    image("a photo of a house between two trees at night", 4, 2),
    text("Once upon a time"),
    image("", 1, 1),
]


@torch.no_grad()
def last_logits(decoder: Decoder, tokens: np.ndarray) -> torch.Tensor:
    """Logits [v] after the tokens, without a cache."""
    tokens_bs = torch.from_numpy(tokens).long()[None]
    return decoder(whole_rows(tokens_bs), "logits")[0, -1]


def say_greedily(decoder: Decoder, request: Request, scale: float, max_tokens: int) -> list[int]:
    """The definition: whole sequences, whole vocabulary, one token at a time."""
    raster, said = Raster(VOCABULARY, request.prompt), []
    while len(said) < max_tokens and not {*said} & {*request.stop}:
        token = raster.allowed
        if isinstance(token, Choice):
            logits_v, negative_v = (
                last_logits(decoder, np.append(prompt, said)).log_softmax(-1)
                for prompt in (request.prompt, request.negative)
            )
            ids = torch.from_numpy(token.ids(VOCABULARY))
            token = int(ids[guide(logits_v, negative_v, scale)[ids].argmax()])
        raster.feed(token)
        said.append(token)
    return said


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("request_", MIXED, ids=["3*5", "4*2", "text", "1*1"])
def test_says_what_the_decoder_says_without_a_cache(decoder, request_, guidance):
    expected = say_greedily(decoder, request_, guidance, max_tokens=24)

    settings = SamplingSettings(temperature=0, guidance=guidance)
    (said,) = generate(decoder, VOCABULARY, [request_], settings, max_tokens=24)

    assert said.tolist() == expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_row_of_a_batch_says_what_it_says_alone(decoder, temperature, guidance):
    settings = lambda seed: SamplingSettings(guidance, temperature, seed=seed)

    together = generate(decoder, VOCABULARY, MIXED, settings(7), max_tokens=24)

    for i, request in enumerate(MIXED):
        (alone,) = generate(decoder, VOCABULARY, [request], settings(7 + i), max_tokens=24)
        assert together[i].tolist() == alone.tolist()


def test_images_end_with_eoi_and_text_at_the_limit(decoder):
    said = generate(decoder, VOCABULARY, MIXED, SamplingSettings(), max_tokens=24)

    assert [len(tokens) for tokens in said] == [3 * 6 + 2, 4 * 3 + 2, 24, 1 * 2 + 2]
    assert [int(said[i][-1]) for i in (0, 1, 3)] == [EOI] * 3


def test_forced_tokens_share_a_call_with_the_code_before_them(decoder, monkeypatch):
    shapes = []
    read = DecodeForward.__call__

    def recording(forward, tokens_bw, *others, **named):
        shapes.append(tuple(tokens_bw.shape))
        return read(forward, tokens_bw, *others, **named)

    monkeypatch.setattr(DecodeForward, "__call__", recording)
    request = image("a cat", 2, 2)

    generate(decoder, VOCABULARY, [request] * 3, SamplingSettings(guidance=3), max_tokens=24)

    # Prompts; code; code and EOL; code. After the last code all is forced and nothing read.
    prompts = [(1, len(request.prompt)), (1, len(request.negative))] * 3
    assert shapes == [*prompts, (6, 1), (6, 2), (6, 1)]


def test_a_long_prompt_is_read_in_pieces(decoder, monkeypatch):
    requests = [image("a cat " * 9, 2, 2), image("a cat", 2, 2)]
    expected = generate(decoder, VOCABULARY, requests, GREEDY, max_tokens=9)

    monkeypatch.setattr("emu3_megatron.generation.generator.PREFILL", 7)
    in_pieces = generate(decoder, VOCABULARY, requests, GREEDY, max_tokens=9)

    np.testing.assert_array_equal(in_pieces, expected)


def test_seeds_decide(decoder):
    draw = lambda seed: generate(
        decoder, VOCABULARY, MIXED[:1], SamplingSettings(seed=seed), max_tokens=24
    )[0].tolist()

    assert draw(0) == draw(0) != draw(1)


def test_random_states_and_gradients_are_left_as_they_were(decoder):
    state = torch.get_rng_state()

    generate(decoder, VOCABULARY, MIXED[:1], SamplingSettings(), max_tokens=24)

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()


def test_guidance_without_a_negative(decoder):
    with pytest.raises(InputError, match="negative"):
        generate(decoder, VOCABULARY, [Request(np.array([1]))], GREEDY, max_tokens=1)


def test_an_empty_prompt(decoder):
    with pytest.raises(InputError, match="empty prompt"):
        generate(
            decoder,
            VOCABULARY,
            [Request(np.array([], np.int32))],
            SamplingSettings(guidance=1),
            max_tokens=1,
        )


def test_a_prompt_that_breaks_the_grammar(decoder):
    broken = np.array([VOCABULARY.bos, VOCABULARY.end_of_line])

    with pytest.raises(GrammarError):
        generate(decoder, VOCABULARY, [Request(broken, broken)], GREEDY, max_tokens=1)


def test_context_parallelism(decoder, monkeypatch):
    monkeypatch.setattr(decoder.config, "context_parallel_size", 2)

    with pytest.raises(InputError, match=r"parallel\.context"):
        generate(decoder, VOCABULARY, MIXED, GREEDY, max_tokens=1)


def test_weights_that_are_not_numbers(mesh):
    broken = build_decoder(SMALL).eval()
    broken.head.weight.data.fill_(float("nan"))

    with pytest.raises(FloatingPointError, match="not finite"):
        generate(broken, VOCABULARY, MIXED[:1], SamplingSettings(), max_tokens=24)


def test_eight_bit_weights_say_nearly_the_same(decoder):
    generator = Generator(decoder, VOCABULARY, rows=2, capacity=60, eight_bit=True)
    generator.submit(MIXED[0], GREEDY, max_tokens=24)
    said = []
    while not generator.is_idle:
        said += [token for news in generator.step() for token in news.tokens]

    (expected,) = generate(decoder, VOCABULARY, MIXED[:1], GREEDY, max_tokens=24)
    assert len(said) == len(expected)
    assert np.mean(said == expected) > 0.5
