"""Implementations by name, and which of them serves a call.

Each is a module with `forward`, `backward`, and `refusal`: why it cannot take a call, or None.
"""

from importlib import import_module
from types import ModuleType
from typing import Literal, get_args

import torch
from emu3_kernels.attention_tile.dropout import Dropout

Backend = Literal["auto", "reference", "sdpa", "triton", "flash", "flex"]
MODULES = {"triton": "triton_tile"}  # the others are named like their modules
# By device, best first; on GPUs not measured yet.
PREFERRED = {"cpu": ("sdpa", "reference"), "cuda": ("triton", "reference")}


def choose(backend: str, q_thd: torch.Tensor, dropout: Dropout | None) -> ModuleType:
    """The module that serves a call.

    Raises:
        ValueError: an unknown backend, or one that cannot take the call.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend: {backend!r} is none of {', '.join(get_args(Backend))}")
    if backend == "auto":
        names = PREFERRED.get(q_thd.device.type, ())
        modules = (_module(name) for name in names)
        return next((m for m in modules if not m.refusal(q_thd, dropout)), _module("reference"))
    module = _module(backend)
    if reason := module.refusal(q_thd, dropout):
        raise ValueError(f"backend {backend}: {reason}")
    return module


def _module(name: str) -> ModuleType:
    return import_module(f"emu3_kernels.attention_tile.{MODULES.get(name, name)}")
