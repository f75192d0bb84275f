"""Generation never takes more memory than was estimated before it began."""

import weakref
from random import Random

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from emu3_megatron.config import ModelConfig
from emu3_megatron.generation.estimate import Work, estimate, weight_bytes
from emu3_megatron.generation.generator import generate
from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.options import EngineOptions
from emu3_megatron.generation.pool import PREFILL
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta, vision_prompt
from emu3_megatron.model import Decoder, build_decoder

SMALL = ModelConfig(layers=2, hidden=64, heads=4, kv_heads=2, ffn=96, text="bytes", codes=64)
VOCABULARY = SMALL.vocabulary()


@pytest.fixture(scope="module")
def decoder(mesh) -> Decoder:
    return build_decoder(SMALL).eval()


class Held(TorchDispatchMode):
    """Counts the bytes of what operations allocate, for as long as a tensor holds it.

    Attributes:
        most: bytes at once; what a kernel allocates and frees inside itself is not among them.
    """

    def __init__(self, decoder: Decoder):
        super().__init__()
        self._now = self.most = 0
        self._known = {id(parameter.untyped_storage()) for parameter in decoder.parameters()}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._take(tensor.untyped_storage())
        return out

    def _take(self, storage: torch.UntypedStorage) -> None:
        number, size = id(storage), storage.nbytes()
        if number not in self._known:
            self._known.add(number)
            self._now += size
            self.most = max(self.most, self._now)
            weakref.finalize(storage, self._give_back, number, size)

    def _give_back(self, number: int, size: int) -> None:
        self._known.discard(number)
        self._now -= size


def draw_work(random: Random, guided: bool) -> tuple[Work, Request]:
    """An image, or a text behind a prompt that may take several steps to read."""
    if random.random() < 0.6:
        meta = Meta(random.randint(1, 5), random.randint(1, 5))
        captions = "x" * random.randint(0, 40), "y" * random.randint(0, 10)
        prompts = [vision_prompt(VOCABULARY, caption, meta) for caption in captions]
        work = Work.of_vision(max(map(len, prompts)), meta, guided=guided)
        return work, Request(*prompts, stop=(VOCABULARY.vision_end,))
    length = random.choice([1, 7, 60, 600, PREFILL + 300])
    prompt = np.append(VOCABULARY.bos, VOCABULARY.encode("z" * length))
    work = Work(len(prompt), random.randint(1, 12), 0, 1 + guided)
    return work, Request(prompt, prompt[: random.randint(1, length)], stop=(VOCABULARY.eos,))


def test_200_random_requests_never_take_more_than_was_estimated(decoder):
    random, count, shares = Random(0), 0, []
    while count < 200:
        guided, top_k = random.random() < 0.5, random.choice([None, 5])
        options = EngineOptions(random.random() < 0.2, random.choice([1, 1, 4, 16]))
        settings = SamplingSettings(3.0 if guided else 1.0, random.choice([0, 1]), top_k)
        some = [draw_work(random, guided) for _ in range(random.randint(1, 8))]
        works, requests = zip(*some, strict=True)
        most = max(work.tokens for work in works)
        needed = estimate(SMALL, "fp32", [works], options=options)

        with Held(decoder) as held:
            generate(decoder, VOCABULARY, requests, settings, max_tokens=most, options=options)

        count += len(some)
        shares.append(held.most / (needed.bytes - weight_bytes(SMALL, "fp32")))
    assert 0.6 < max(shares) <= 1
