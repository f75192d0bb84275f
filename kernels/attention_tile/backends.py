"""Backends of attention tiles by name, and the choice of the one that serves a call."""

from importlib import import_module
from typing import Literal, get_args

from emu3_kernels.attention_tile.implementation import Implementation
from emu3_kernels.attention_tile.tile import Tile

Backend = Literal[
    "auto",
    "reference",
    "sdpa",
    "triton",
    "flash",
    "flash3",
    "flash4",
    "flash_attn",
    "cudnn",
    "flex",
]
MODULES = {"triton": "triton_tile"}  # the others are named like their modules
# Of "auto" by device, best first. On GPUs the order is not measured.
CANDIDATES = {"cpu": ("sdpa", "reference"), "cuda": ("triton", "reference")}


def choose(backend: str, tile: Tile) -> Implementation:
    """The implementation that serves a call.

    Raises:
        ValueError: an unknown backend, or one that cannot take the call.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend: {backend!r} is none of {', '.join(get_args(Backend))}")
    if backend == "auto":
        names = CANDIDATES.get(tile.q_thd.device.type, ())
        candidates = (load(name) for name in names)
        able = (one for one in candidates if not one.unsupported_reason(tile))
        return next(able, load("reference"))
    implementation = load(backend)
    if reason := implementation.unsupported_reason(tile):
        raise ValueError(f"backend {backend}: {reason}")
    return implementation


def load(name: str) -> Implementation:
    """Import a backend's module."""
    module = import_module(f"emu3_kernels.attention_tile.{MODULES.get(name, name)}")
    return module.IMPLEMENTATION
