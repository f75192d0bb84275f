"""Continues any prompts in one batch, each as the grammar allows."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from emu3_megatron.errors import InputError
from emu3_megatron.generation.raster import Choice, Raster
from emu3_megatron.generation.sampling import SamplingSettings, guide, sample
from emu3_megatron.generation.stream import Stream
from emu3_megatron.model import Decoder
from emu3_megatron.vocabulary import Vocabulary


@dataclass(frozen=True)
class Request:
    """A prompt to go on from.

    Attributes:
        prompt: int32 [n], n > 0; may end inside an image or a clip.
        negative: what guidance leads away from, int32 [m], m > 0; it ends like the prompt, from its
            last BOI on. Needed where the guidance is not 1.
        stop: tokens that end the row; they are part of the result.
    """

    prompt: np.ndarray
    negative: np.ndarray | None = None
    stop: tuple[int, ...] = ()


def generate(
    decoder: Decoder,
    vocabulary: Vocabulary,
    requests: Sequence[Request],
    settings: SamplingSettings,
    *,
    max_tokens: int,
    progress: bool = False,
) -> list[np.ndarray]:
    """Go on from each prompt, as the grammar allows, until a stop token or `max_tokens` of them.

    All rows run in one batch, under guidance with their negatives; what a row says does not depend
    on the others. Tensor parallel ranks call this alike and get the same.

    Args:
        decoder: from `open_decoder`, or an engine's `decoder()`: no dropout, no sequence
            parallelism.
        progress: show a bar with rate and time left.

    Returns:
        New tokens of each request, int32, without its prompt.

    Raises:
        InputError: a prompt is empty or breaks the grammar, a negative is missing, or the decoder
            is split by context parallelism.
    """
    if decoder.config.context_parallel_size > 1:
        raise InputError(
            "no sampling with parallel.context > 1; load the checkpoint with context=1"
        )
    assert not decoder.training, "dropout would act"
    assert not decoder.config.sequence_parallel, "a single column cannot be divided"
    prompts = _all_prompts(requests, settings)
    rows = [
        _Row(Raster(vocabulary, request.prompt), request.stop, max_tokens, settings.seed + i)
        for i, request in enumerate(requests)
    ]
    # A bar under another is removed at its end.
    bar = tqdm(total=max_tokens, unit="tok", leave=None, disable=not progress)
    with torch.no_grad(), bar:
        stream = Stream(decoder, vocabulary, prompts, max_tokens)
        for longest in _fill(rows, stream, settings):
            bar.update(longest - bar.n)
    return [np.array(row.tokens, np.int32) for row in rows]


def _all_prompts(requests: Sequence[Request], settings: SamplingSettings) -> list[np.ndarray]:
    """The prompts, and after them, where there is guidance, their negatives."""
    prompts = [request.prompt for request in requests]
    if settings.guidance != 1:
        negatives = [request.negative for request in requests if request.negative is not None]
        if len(negatives) < len(requests):
            raise InputError("guidance needs a negative for every prompt; or set guidance=1")
        prompts += negatives
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise InputError("an empty prompt; begin with BOS")
    return prompts


class _Row:
    """One request under way.

    Attributes:
        tokens: said so far.
        is_open: whether more are to come.
    """

    def __init__(self, raster: Raster, stop: tuple[int, ...], max_tokens: int, seed: int):
        self.raster = raster
        self.stop = stop
        self.max_tokens = max_tokens
        self.random = random.Random(seed)
        self.tokens: list[int] = []
        self.is_open = True
        self._fed = 0
        self._take_forced()

    def take(self, token: int) -> None:
        """Say a drawn token, and what the grammar forces after it."""
        self._append(token)
        self._take_forced()

    def _take_forced(self) -> None:
        while self.is_open and isinstance(self.raster.allowed, int):
            self._append(self.raster.allowed)

    def _append(self, token: int) -> None:
        self.tokens.append(token)
        self.raster.feed(token)
        self.is_open = token not in self.stop and len(self.tokens) < self.max_tokens

    @property
    def num_ready(self) -> int:
        """Tokens said that the decoder has not read; with none, one is to be drawn."""
        return len(self.tokens) - self._fed

    def read(self, width: int) -> list[int]:
        """The next tokens for the decoder; a closed row may run out and repeats its last."""
        tokens = self.tokens[self._fed : self._fed + width]
        self._fed += len(tokens)
        return tokens + self.tokens[-1:] * (width - len(tokens))


def _fill(rows: list[_Row], stream: Stream, settings: SamplingSettings) -> Iterator[int]:
    """Fill the rows; yield after each step how many tokens the longest has.

    A step feeds as many tokens as every open row has ready: a drawn one, and those forced after it.
    So a forced token costs no drawing and, where rows share a grid, no call of its own either.
    """
    copies = 1 if settings.guidance == 1 else 2
    while True:
        _draw(rows, stream, settings)
        yield max(len(row.tokens) for row in rows)
        ready = [row.num_ready for row in rows if row.is_open]
        if not ready:
            return
        width = min(ready)
        stream.feed([row.read(width) for row in rows] * copies)


def _draw(rows: list[_Row], stream: Stream, settings: SamplingSettings) -> None:
    """Draw a token for each open row that has none ready."""
    waiting: dict[Choice, list[int]] = {}
    for i, row in enumerate(rows):
        if row.is_open and not row.num_ready:
            assert isinstance(row.raster.allowed, Choice)
            waiting.setdefault(row.raster.allowed, []).append(i)
    # Rows with the same choice are drawn together; mostly all choose a code.
    for choice, indices in waiting.items():
        logits_bv = stream.logits(choice, indices)
        if settings.guidance != 1:
            negative_bv = stream.logits(choice, [len(rows) + i for i in indices])
            logits_bv = guide(logits_bv, negative_bv, settings.guidance)
        uniforms_b = torch.tensor([rows[i].random.random() for i in indices], dtype=torch.float64)
        columns_b = sample(logits_bv, uniforms_b.to(logits_bv.device), settings)
        for i, token in zip(indices, stream.ids(choice)[columns_b].tolist(), strict=True):
            rows[i].take(token)
