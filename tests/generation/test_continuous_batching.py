"""Requests join and leave at any step, and each says what it says alone."""

import random

import numpy as np
import pytest

from emu3_megatron.config import ModelConfig
from emu3_megatron.errors import InputError
from emu3_megatron.generation.generator import Generator, generate
from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta, Vision, open_prompt, vision_prompt
from emu3_megatron.model import Decoder, build_decoder

SMALL = ModelConfig(
    layers=2, hidden=64, heads=4, kv_heads=2, ffn=96, text="bytes", codes=64, init_std=0.2
)
VOCABULARY = SMALL.vocabulary()
PLAIN = SamplingSettings(guidance=1)


@pytest.fixture(scope="module")
def decoder(mesh) -> Decoder:
    return build_decoder(SMALL).eval()


class NoFreeRows(Generator):
    """Fails when a request waits for rows that are free at the beginning of a step."""

    def _read_prompts(self) -> None:
        # A guided request that waits may need two.
        assert self.pool.rows - self.num_rows <= 1 or not self.num_waiting
        super()._read_prompts()


def image(caption: str, height: int, width: int) -> Request:
    return vision(caption, Meta(height, width))


def vision(caption: str, meta: Meta) -> Request:
    prompts = [vision_prompt(VOCABULARY, text, meta) for text in (caption, "")]
    return Request(*prompts, stop=(VOCABULARY.vision_end,))


def answer(height: int, width: int) -> Request:
    """Text about a picture."""
    codes = np.arange(height * width).reshape(height, width)
    prompt = open_prompt(VOCABULARY, [Vision.image(codes)])
    return Request(prompt, prompt[:1], stop=(VOCABULARY.eos, VOCABULARY.vision_start))


def alone(decoder: Decoder, request: Request, settings: SamplingSettings) -> list[int]:
    return generate(decoder, VOCABULARY, [request], settings, max_tokens=40)[0].tolist()


def finish(generator: Generator) -> dict[int, list[int]]:
    """What each request says until all have left."""
    said: dict[int, list[int]] = {}
    for _ in range(1000):
        if generator.is_idle:
            return said
        for news in generator.step():
            said.setdefault(news.number, []).extend(news.tokens)
    raise AssertionError("a request never left")


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["host", "ahead"])
def test_64_mixed_requests_with_open_arrivals(decoder, runs_ahead):
    random_ = random.Random(0)
    requests = [
        image(f"picture {i}" * random_.randint(1, 6), random_.randint(1, 5), random_.randint(1, 6))
        if i % 3
        else vision("clip", Meta(2, 2, frames=random_.randint(2, 4), fps=6, seconds=2))
        if i % 2
        else answer(random_.randint(1, 4), random_.randint(1, 4))
        for i in range(64)
    ]
    settings = [
        SamplingSettings(
            guidance=random_.choice([1.0, 3.0]),
            temperature=random_.choice([0.0, 1.0, 1.3]),
            top_k=random_.choice([None, 5, 2048]),
            top_p=random_.choice([1.0, 0.9]),
            seed=i,
        )
        for i in range(64)
    ]
    generator = NoFreeRows(decoder, VOCABULARY, rows=9, capacity=150)
    generator.runs_ahead = runs_ahead
    said: dict[int, list[int]] = {i: [] for i in range(64)}
    done, begun_at, step = set(), {}, 0
    while len(done) < 64:
        if step % 2 == 0 and step // 2 < 64:
            generator.submit(requests[step // 2], settings[step // 2], max_tokens=40)
        for news in generator.step():
            said[news.number] += news.tokens
            begun_at.setdefault(news.number, step)
            done |= {news.number} if news.is_done else set()
        step += 1
        assert step < 2000

    # First come, first served; a code may be reported a step later than text.
    assert all(begun_at[i] <= begun_at[i + 1] + 1 for i in range(63))
    for i in range(64):
        assert said[i] == alone(decoder, requests[i], settings[i]), i


def test_what_comes_first_by_priority_puts_others_back_and_they_say_the_same(decoder):
    generator = Generator(decoder, VOCABULARY, rows=2, capacity=80)
    low = [generator.submit(image("low", 4, 4), PLAIN, max_tokens=40) for _ in range(2)]
    for _ in range(5):
        generator.step()
    high = generator.submit(image("high", 2, 2), SamplingSettings(), max_tokens=40, priority=1)

    order = []
    said: dict[int, list[int]] = {i: [] for i in (*low, high)}
    generator.cancel(99)
    while not generator.is_idle:
        for news in generator.step():
            said[news.number] += news.tokens
            order += [news.number] if news.is_done else []

    assert order[0] == high
    assert said[high] == alone(decoder, image("high", 2, 2), SamplingSettings())
    # What was reported before came before the priority did.
    expected = alone(decoder, image("low", 4, 4), PLAIN)
    assert [expected[-len(said[i]) :] for i in low] == [said[i] for i in low]
    assert all(len(said[i]) < len(expected) for i in low)


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["host", "ahead"])
def test_a_cancelled_request_leaves_and_others_go_on(decoder, runs_ahead):
    generator = Generator(decoder, VOCABULARY, rows=4, capacity=80)
    generator.runs_ahead = runs_ahead
    settings = [SamplingSettings(seed=i) for i in range(3)]
    numbers = [generator.submit(image("a cat", 4, 4), s, max_tokens=40) for s in settings]
    said: dict[int, list[int]] = {i: [] for i in numbers}
    for _ in range(4):
        for news in generator.step():
            said[news.number] += news.tokens
    generator.cancel(numbers[0])

    for number, tokens in finish(generator).items():
        said[number] += tokens

    assert len(said[numbers[0]]) < 10
    for number in numbers[1:]:
        assert said[number] == alone(decoder, image("a cat", 4, 4), settings[number])


def test_a_long_prompt_does_not_stop_others(decoder, monkeypatch):
    monkeypatch.setattr("emu3_megatron.generation.generator.PREFILL", 8)
    generator = Generator(decoder, VOCABULARY, rows=2, capacity=200)
    generator.submit(image("a", 4, 4), PLAIN, max_tokens=40)
    while generator.step() == []:
        pass
    long = generator.submit(image("a long prompt " * 8, 2, 2), PLAIN, max_tokens=40)

    steps = [{news.number: news.tokens for news in generator.step()} for _ in range(8)]

    assert all(list(step) == [0] for step in steps)
    assert finish(generator)[long] == alone(decoder, image("a long prompt " * 8, 2, 2), PLAIN)


def test_a_request_longer_than_a_row_of_the_pool(decoder):
    generator = Generator(decoder, VOCABULARY, rows=2, capacity=30)

    with pytest.raises(InputError, match=r"a row of the KV pool holds 30"):
        generator.submit(image("a cat", 4, 4), PLAIN, max_tokens=40)


def test_guidance_in_a_pool_of_one_row(decoder):
    generator = Generator(decoder, VOCABULARY, rows=1, capacity=80)

    with pytest.raises(InputError, match="two rows"):
        generator.submit(image("a cat", 4, 4), SamplingSettings(), max_tokens=40)


def test_watching_a_batch(decoder):
    seen = []
    requests = [image("a cat", 2, 2), image("a dog", 1, 2)]

    said = generate(
        decoder,
        VOCABULARY,
        requests,
        PLAIN,
        max_tokens=40,
        watch=lambda tokens: seen.append([len(row) for row in tokens]),
    )

    assert seen[0] == [1, 1]
    assert seen[-1] == [len(tokens) for tokens in said]
