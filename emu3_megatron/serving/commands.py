"""What the engine is told and what it tells, and how the first rank tells the others."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.sampling import SamplingSettings


@dataclass(frozen=True)
class Begin:
    """Take a request in. `key` names it here and in every event of it."""

    key: int
    request: Request
    settings: SamplingSettings
    max_tokens: int


@dataclass(frozen=True)
class Cancel:
    """Forget a request."""

    key: int


@dataclass(frozen=True)
class Score:
    """Compute the log-probability of each token, and of the `top` likeliest in its place."""

    key: int
    tokens: np.ndarray
    top: int


@dataclass(frozen=True)
class Stop:
    """Leave."""


Command = Begin | Cancel | Score | Stop


@dataclass(frozen=True)
class Begun:
    """A request has left the queue."""

    key: int


@dataclass(frozen=True)
class Said:
    """New tokens of a request."""

    key: int
    tokens: list[int]
    is_done: bool


@dataclass(frozen=True)
class Scored:
    """What `Score` asked for."""

    key: int
    scores: Any


@dataclass(frozen=True)
class Declined:
    """A request that the generator does not take, and why."""

    key: int
    reason: str


@dataclass(frozen=True)
class Failed:
    """The engine is of no further use."""


Event = Begun | Said | Scored | Declined | Failed


class Channel:
    """Tells the commands of each turn to all ranks, in the order in which the first gives them."""

    def __init__(self) -> None:
        self.ranks = dist.get_world_size() if dist.is_initialized() else 1
        # By the hosts: a rank that waits leaves its GPU alone.
        self._group = dist.new_group(backend="gloo") if self.ranks > 1 else None

    def send(self, commands: Sequence[Command]) -> None:
        """On the first rank."""
        if self.ranks == 1:
            return
        content = pickle.dumps(list(commands)) if commands else b""
        self._broadcast(torch.tensor([len(content)]))
        if content:
            self._broadcast(torch.frombuffer(bytearray(content), dtype=torch.uint8))

    def receive(self) -> list[Command]:
        """On the other ranks: waits until the first sends."""
        (size,) = self._broadcast(torch.zeros(1, dtype=torch.int64)).tolist()
        if not size:
            return []
        content = self._broadcast(torch.empty(size, dtype=torch.uint8))
        return pickle.loads(content.numpy().tobytes())

    def _broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        dist.broadcast(tensor, 0, group=self._group)
        return tensor
