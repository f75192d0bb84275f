"""Refuses what cannot be generated before any work, in one line with the limit and the size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from emu3_megatron.errors import InputError
from emu3_megatron.generation.estimate import Estimate, Work

MOST_REQUESTS = 100_000


@dataclass(frozen=True)
class Limits:
    """What a model and a device allow.

    Attributes:
        context: tokens of a sequence, prompt and answer together.
        memory: free bytes of the device.
        requests: how many may be asked for at once.
    """

    context: int
    memory: int
    requests: int = MOST_REQUESTS

    def check_count(self, count: int, what: str) -> None:
        """Raises InputError when there are too many, or none."""
        if not 0 < count <= self.requests:
            raise InputError(
                f"{count:,} {what}: a command makes 1 to {self.requests:,}; split the prompts"
            )

    def check_length(self, work: Work) -> None:
        """Raises InputError when a sequence is longer than the context."""
        if work.prompt >= self.context:
            raise InputError(
                f"{work.what}: a prompt of {work.prompt:,} tokens leaves nothing of the context of "
                f"{self.context:,}; shorten it, or show less"
            )
        if work.length > self.context:
            raise InputError(
                f"{work.what}: {work.tokens:,} tokens behind a prompt of {work.prompt:,}, and the "
                f"model knows sequences of up to {self.context:,}; ask for less, or go beyond by "
                f"--context {work.length}"
            )

    def check_memory(self, needed: Estimate) -> None:
        """Raises InputError when weights, KV pool and buffers do not fit into the memory."""
        if needed.bytes > self.memory:
            raise InputError(
                f"{_size(needed.bytes)} are needed ({needed.rows:,} rows of {needed.capacity:,} "
                f"tokens {_size(needed.pool)}, weights {_size(needed.weights)}), and "
                f"{_size(self.memory)} are free; ask for a smaller grid, or less at once by --batch"
            )


def _size(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.1f} MiB"


def trained_context(about: Mapping[str, Any]) -> int | None:
    """Tokens of the longest sequences that the weights were trained on, if that is known.

    Args:
        about: what the checkpoint's manifest says.
    """
    if about.get("max_positions"):
        return about["max_positions"]
    return about.get("recipe", {}).get("data", {}).get("context")


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def describe(needed: Estimate, bandwidth: float, free: int) -> Sequence[str]:
    """Lines that say what an estimate comes to.

    Args:
        bandwidth: of the memory, bytes a second.
        free: bytes.
    """
    return [
        f"tokens  {needed.tokens:,}, of which {needed.drawn:,} are drawn and the others follow",
        f"memory  {_size(needed.bytes)} of {_size(free)} that are free: weights "
        f"{_size(needed.weights)}, keys and values of {needed.rows:,} rows of {needed.capacity:,} "
        f"tokens {_size(needed.pool)}, buffers {_size(needed.buffers)}; the vision tokenizer's "
        "come on top",
        f"time    {_duration(needed.read / bandwidth)} at least: {needed.read / 1e9:,.1f} GB to "
        f"read, at the {bandwidth / 1e9:,.1f} GB/s that copying reaches here",
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"
