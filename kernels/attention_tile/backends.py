"""Implementations by name, and which of them serves a call.

Each is a module: an `Implementation`.
"""

from importlib import import_module
from typing import Literal, Protocol, cast, get_args

import torch
from emu3_kernels.attention_tile.tile import Tile

Backend = Literal["auto", "reference", "sdpa", "triton", "flash", "flash_attn", "cudnn", "flex"]
MODULES = {"triton": "triton_tile"}  # the others are named like their modules
# By device, best first; on GPUs not measured yet.
PREFERRED = {"cpu": ("sdpa", "reference"), "cuda": ("triton", "reference")}


class Implementation(Protocol):
    """What a backend's module holds."""

    def refusal(self, tile: Tile) -> str | None:
        """Why it cannot take a tile, if so."""
        ...

    def forward(
        self, tile: Tile, running: tuple[torch.Tensor, torch.Tensor] | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `attention_tile`."""
        ...

    def backward(
        self,
        tile: Tile,
        dout_thd: torch.Tensor,
        delta_ht: torch.Tensor,
        lse_ht: torch.Tensor,
        gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> None:
        """See `attention_tile_backward`; gradients are dq, dk and dv."""
        ...


def choose(backend: str, tile: Tile) -> Implementation:
    """The module that serves a call.

    Raises:
        ValueError: an unknown backend, or one that cannot take the call.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend: {backend!r} is none of {', '.join(get_args(Backend))}")
    if backend == "auto":
        names = PREFERRED.get(tile.q_thd.device.type, ())
        modules = (_module(name) for name in names)
        return next((m for m in modules if not m.refusal(tile)), _module("reference"))
    module = _module(backend)
    if reason := module.refusal(tile):
        raise ValueError(f"backend {backend}: {reason}")
    return module


def _module(name: str) -> Implementation:
    module = import_module(f"emu3_kernels.attention_tile.{MODULES.get(name, name)}")
    return cast(Implementation, module)
