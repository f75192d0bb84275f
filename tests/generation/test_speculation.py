"""Guessing ahead changes how many steps are taken, never what is said."""

import numpy as np
import pytest
import torch

from emu3_megatron.config import ModelConfig
from emu3_megatron.errors import InputError
from emu3_megatron.generation.generator import Generator
from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.generation.speculation import Pace
from emu3_megatron.grammar import Meta, Vision, open_prompt, vision_prompt
from emu3_megatron.model import Decoder, build_decoder

SMALL = ModelConfig(
    layers=2, hidden=64, heads=4, kv_heads=2, ffn=96, text="bytes", codes=64, init_std=0.02
)
VOCABULARY = SMALL.vocabulary()
GUIDED, PLAIN = SamplingSettings(3.0, seed=1), SamplingSettings(1.0, top_k=20, seed=2)


@pytest.fixture(scope="module")
def decoder(mesh) -> Decoder:
    return build_decoder(SMALL).eval()


def vision(meta: Meta) -> Request:
    prompts = [vision_prompt(VOCABULARY, text, meta) for text in ("a cat", "")]
    return Request(*prompts, stop=(VOCABULARY.vision_end,))


def answer() -> Request:
    prompt = open_prompt(VOCABULARY, [Vision.image(np.arange(6).reshape(2, 3))])
    return Request(prompt, prompt[:1], stop=(VOCABULARY.eos,))


REQUESTS = [
    (vision(Meta(1, 1)), GUIDED),
    (vision(Meta(7, 5)), GUIDED),
    (vision(Meta(4, 9)), PLAIN),
    (answer(), PLAIN),
    (vision(Meta(3, 2, frames=4, fps=6, seconds=2)), GUIDED),
    (vision(Meta(5, 1)), SamplingSettings(2.0, temperature=0)),
]


def say(decoder: Decoder, window: int, rows: int = 12) -> tuple[list[list[int]], Generator]:
    """What each request says; the clock, which would turn guessing off, stands still."""
    generator = Generator(decoder, VOCABULARY, rows=rows, capacity=150, speculate=window)
    generator.speculation.pace.count = lambda tokens: None
    for request, settings in REQUESTS:
        generator.submit(request, settings, max_tokens=60)
    said: list[list[int]] = [[] for _ in REQUESTS]
    while not generator.is_idle:
        for news in generator.step():
            said[news.number] += news.tokens
    return said, generator


@pytest.fixture(scope="module")
def one_at_a_time(decoder) -> list[list[int]]:
    return say(decoder, 1)[0]


@pytest.mark.parametrize("window", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("rows", [3, 12], ids=["waiting", "at once"])
def test_every_window_says_the_same(decoder, one_at_a_time, window, rows):
    said, generator = say(decoder, window, rows)

    assert said == one_at_a_time
    assert generator.speculation.tokens_per_call > (1 if window > 2 else 0.99)


def test_guesses_that_come_true_save_steps(decoder):
    steps = {}
    for window in (1, 8):
        generator = Generator(decoder, VOCABULARY, rows=1, capacity=300, speculate=window)
        generator.speculation.pace.count = lambda tokens: None
        generator.submit(vision(Meta(12, 12)), PLAIN, max_tokens=200)
        steps[window] = 0
        while not generator.is_idle:
            generator.step()
            steps[window] += 1

    # The model is far from sure: a draw depends on the noise of its place as much as on the past.
    assert steps[8] < 0.7 * steps[1]


@pytest.mark.parametrize("faster", [True, False])
def test_it_turns_itself_off_while_it_is_slower(mesh, faster, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("emu3_megatron.generation.speculation.time.perf_counter", lambda: clock[0])
    pace = Pace(torch.device("cpu"))
    chosen = []
    for _ in range(16 + 16 + 256):
        chosen.append(pace.speculates)
        clock[0] += (1.0 if faster else 3.0) if pace.speculates else 1.0
        pace.count(2 if pace.speculates else 1)

    assert chosen[:16] == [True] * 16
    assert chosen[16:32] == [False] * 16
    assert chosen[32:] == [faster] * 256
    assert pace.speculates  # another trial


@pytest.mark.parametrize("window", [0, 17])
def test_windows_that_make_no_sense(decoder, window):
    with pytest.raises(InputError, match="speculation"):
        Generator(decoder, VOCABULARY, rows=1, capacity=10, speculate=window)
