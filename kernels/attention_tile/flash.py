"""torch's flash attention for GPUs, many segments of the mask in one call.

The same calls reach FlashAttention-3 or -4 where torch is told to use them.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TypeVar

import torch
from emu3_kernels.attention_tile.implementation import Implementation, unsupported_by_gpu_kernels
from emu3_kernels.attention_tile.packed import Call, calls, nothing_is_negative
from emu3_kernels.attention_tile.parts import by_parts
from emu3_kernels.attention_tile.tile import Tile

aten = torch.ops.aten
Result = TypeVar("Result")
# Versions that torch calls instead of its own, by the module that each of them imports.
PACKAGES = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: Call, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse, *_ = aten._flash_attention_forward(
        *(q, k, v, *call.bounds), 0.0, call.causal, False, scale=scale
    )
    return out, nothing_is_negative(lse)


def _differentiate(
    dout: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    call: Call,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    no_rng = torch.empty(2, dtype=torch.uint64, device=q.device)
    return aten._flash_attention_backward(
        *(dout, q, k, v, out, lse, *call.bounds),
        *(0.0, call.causal, no_rng, torch.empty(0, device=q.device)),
        scale=scale,
    )


def by_version(version: str) -> Implementation:
    """A backend of the same calls with "FA3" or "FA4" in the place of torch's FlashAttention-2."""
    return by_parts(
        partial(_unsupported_reason, version),
        calls,
        _with(version, _attend),
        _with(version, _differentiate),
    )


def _unsupported_reason(version: str, tile: Tile) -> str | None:
    if reason := unsupported_by_gpu_kernels(tile, largest_dim=128):
        return reason
    if not hasattr(torch.nn.attention, "restore_flash_attention_impl"):
        return f"torch {torch.__version__} cannot change its flash attention; install a newer one"
    package = PACKAGES[version]
    # A parent package that is missing raises; it is looked for first.
    if not find_spec(package.partition(".")[0]) or not find_spec(package):
        return f"{package} is not installed"
    return None


def _with(version: str | None, call: Callable[..., Result]) -> Callable[..., Result]:
    """A call that finds a version behind torch's operations; None: torch's own.

    The choice is one of the whole process, and is only made anew where it was another one.
    """

    def chosen(*arguments: object) -> Result:
        attention = torch.nn.attention
        current = getattr(attention, "current_flash_attention_impl", lambda: None)()
        if current != version:
            if version is None:
                attention.restore_flash_attention_impl()
            else:
                attention.activate_flash_attention_impl(version)
        return call(*arguments)

    return chosen


IMPLEMENTATION = by_parts(
    partial(unsupported_by_gpu_kernels, largest_dim=256),
    calls,
    _with(None, _attend),
    _with(None, _differentiate),
)
