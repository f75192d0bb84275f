"""Tokens, memory and the least time of generation, computed without any of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from emu3_megatron.config import ModelConfig
from emu3_megatron.generation.options import PLAIN, EngineOptions
from emu3_megatron.generation.pool import PREFILL, SPARE
from emu3_megatron.grammar import Meta

BYTES = {"fp32": 4, "bf16": 2}  # a number of weights and activations, by the recipe's precision
# Of each row, for every id: fp32 logits, those under guidance, fp64 noise and scores, ids.
_BYTES_AN_ID = 4 + 4 + 8 + 8 + 8
_COPIED = 64 << 20  # bytes that are copied to measure a bandwidth; more than caches hold


@dataclass(frozen=True)
class Work:
    """A request.

    Attributes:
        prompt: tokens that are given; of the longer of prompt and negative.
        tokens: tokens to come at most, with those that the grammar forces.
        drawn: of these, tokens that need a step of their own.
        rows: of the KV pool that it takes: two with guidance.
        codes_only: whether all that is drawn are codes, so that the head's other ids are not read.
        what: is asked for, in messages.
    """

    prompt: int
    tokens: int
    drawn: int
    rows: int = 1
    codes_only: bool = True
    what: str = "the prompt"

    @classmethod
    def of_vision(
        cls, prompt: int, meta: Meta, given: int = 0, guided: bool = False, what: str = ""
    ) -> "Work":
        """An image or a clip.

        Args:
            prompt: tokens up to IMG and of the frames that are given.
            given: latent frames that are given.
        """
        frames = meta.frames - given
        tokens = frames * (meta.num_tokens // meta.frames) + 1
        drawn = frames * meta.height * meta.width
        return cls(prompt, tokens, drawn, 1 + guided, what=what or str(meta))

    @classmethod
    def of_text(cls, prompt: int, tokens: int, what: str = "the prompt") -> "Work":
        return cls(prompt, tokens, tokens, codes_only=False, what=what)

    @property
    def length(self) -> int:
        return self.prompt + self.tokens


def weight_bytes(model: ModelConfig, precision: str, tensor: int = 1) -> int:
    """Of the decoder, on one of `tensor` ranks."""
    ids = model.vocabulary().padded_size(tensor) // tensor
    return BYTES[precision] * (_layer_weights(model, tensor) + 2 * ids * model.hidden)


def eight_bit_bytes(model: ModelConfig, tensor: int = 1) -> int:
    """The copy of the layers' matrices in 8 bits, with an fp32 scale for each row, on one rank."""
    split = (model.heads + 2 * model.kv_heads) * model.head_dim + 2 * model.ffn
    scales = model.layers * (split // tensor + 2 * model.hidden)
    return _matrices(model, tensor) + 4 * scales


def _matrices(model: ModelConfig, tensor: int) -> int:
    """Numbers in the matrices of all layers, on one rank."""
    attention = (2 * model.heads + 2 * model.kv_heads) * model.head_dim * model.hidden
    return model.layers * (attention + 3 * model.ffn * model.hidden) // tensor


def _layer_weights(model: ModelConfig, tensor: int) -> int:
    """Numbers in all layers and the last norm, on one rank."""
    return _matrices(model, tensor) + (2 * model.layers + 1) * model.hidden


def token_bytes(model: ModelConfig, precision: str, tensor: int = 1) -> int:
    """Keys and values of one token in one row, on one rank."""
    return 2 * model.layers * model.kv_heads // tensor * model.head_dim * BYTES[precision]


def pool_bytes(
    model: ModelConfig, precision: str, rows: int, capacity: int, tensor: int = 1
) -> int:
    """The KV pool: `rows` rows of `capacity` tokens, on one rank."""
    return rows * (capacity + SPARE) * token_bytes(model, precision, tensor)


def buffer_bytes(
    model: ModelConfig,
    precision: str,
    rows: int,
    capacity: int,
    tensor: int = 1,
    window: int = 1,
) -> int:
    """What a step needs besides weights and pool, on one rank.

    Rotary tables of all places; of each row hidden states, logits, noise and scores; and of a piece
    of a prompt its activations and its mask over the places.

    Args:
        window: tokens of a row that a step reads and draws behind at most, with speculation.
    """
    size, places = BYTES[precision], capacity + SPARE
    rotary = 2 * places * model.head_dim * (size + 4)
    ids = model.vocabulary().padded_size(tensor)
    step = rows * window * (ids * _BYTES_AN_ID + 4 * model.hidden * size + 2 * places * size)
    width = 4 * model.hidden + 3 * (model.ffn + model.heads * model.head_dim) // tensor
    piece = min(PREFILL, places) * (width + (model.heads // model.kv_heads + 2) * places) * size
    return rotary + step + piece


def step_bytes(
    model: ModelConfig,
    precision: str,
    held: int,
    tensor: int = 1,
    codes_only: bool = True,
    eight_bit: bool = False,
) -> int:
    """What a step reads on one rank at least: the weights that it uses, and keys and values.

    Args:
        held: tokens that all rows together hold.
        codes_only: the head's rows of codes alone are read.
    """
    ids = model.codes if codes_only else model.vocabulary().size
    read = BYTES[precision] * (_layer_weights(model, tensor) + ids * model.hidden // tensor)
    if eight_bit:
        saved = BYTES[precision] * _matrices(model, tensor) - eight_bit_bytes(model, tensor)
        read -= saved
    return read + held * token_bytes(model, precision, tensor)


@dataclass(frozen=True)
class Estimate:
    """What some batches of requests take, on each of the ranks.

    Attributes:
        tokens, drawn: of all requests.
        rows, capacity: of the KV pool.
        weights, pool, buffers: bytes.
        read: bytes that all steps together read at least.
    """

    tokens: int
    drawn: int
    rows: int
    capacity: int
    weights: int
    pool: int
    buffers: int
    read: int

    @property
    def bytes(self) -> int:
        return self.weights + self.pool + self.buffers


def estimate(
    model: ModelConfig,
    precision: str,
    batches: Sequence[Sequence[Work]],
    tensor: int = 1,
    options: EngineOptions = PLAIN,
) -> Estimate:
    """What the batches take, one after another over one decoder."""
    works = [work for batch in batches for work in batch]
    rows = max(sum(work.rows for work in batch) for batch in batches)
    # As `generate` makes it: every request of a batch may say as much as the longest.
    capacity = max(
        max(work.prompt for work in batch) + max(work.tokens for work in batch) for batch in batches
    )
    weights = weight_bytes(model, precision, tensor)
    if options.eight_bit:
        weights += eight_bit_bytes(model, tensor)
    return Estimate(
        tokens=sum(work.tokens for work in works),
        drawn=sum(work.drawn for work in works),
        rows=rows,
        capacity=capacity,
        weights=weights,
        pool=pool_bytes(model, precision, rows, capacity, tensor),
        buffers=buffer_bytes(model, precision, rows, capacity, tensor, options.speculate),
        read=sum(_read_by(model, precision, batch, tensor, options) for batch in batches),
    )


def _read_by(
    model: ModelConfig,
    precision: str,
    batch: Sequence[Work],
    tensor: int,
    options: EngineOptions,
) -> int:
    """Bytes that the steps of a batch read: weights once a step, each row's tokens as it grows."""
    steps = max(work.drawn for work in batch)
    only_codes = all(work.codes_only for work in batch)
    held = sum(work.rows * work.drawn * (work.prompt + work.tokens // 2) for work in batch)
    weights = step_bytes(model, precision, 0, tensor, only_codes, options.eight_bit)
    return steps * weights + held * token_bytes(model, precision, tensor)


def measure_bandwidth(device: torch.device) -> float:
    """Bytes a second that copying moves on a device, reads and writes together; the best of five.

    Takes well under a second.
    """
    source = torch.ones(_COPIED // 4, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(6):  # the first warms up
        _finish(device)
        begun = time.perf_counter()
        target.copy_(source)
        _finish(device)
        seconds.append(time.perf_counter() - begun)
    return 2 * _COPIED / min(seconds[1:])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
