"""Parameters by name: those that are frozen, and those that have a learning rate of their own."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from megatron.core.optimizer import OptimizerConfig as MegatronConfig
from megatron.core.optimizer import ParamKey, ParamPredicate, get_standard_config_overrides

from emu3_megatron.config.training import MultiplierConfig
from emu3_megatron.errors import InputError
from emu3_megatron.model import Decoder
from emu3_megatron.model.tensors import named_tensors


def freeze(decoder: Decoder, patterns: Sequence[str], recompute: bool) -> None:
    """Let the parameters that a pattern matches stay as they are.

    Args:
        recompute: layers are computed again in the backward pass, which they are only if their
            input has a gradient.

    Raises:
        InputError: a pattern matches nothing, or nothing is left to train.
    """
    for pattern in patterns:
        for parameter in _matching(decoder, pattern, "optimizer.freeze"):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in decoder.parameters()):
        raise InputError("optimizer.freeze: matches every parameter; leave some to train")
    if patterns and recompute:
        decoder.embedding.register_forward_hook(_with_gradient)


def overrides(
    decoder: Decoder, multipliers: Sequence[MultiplierConfig], config: MegatronConfig
) -> dict[ParamKey, Any] | None:
    """What Megatron-core's parameter groups have of their own; of several patterns the last counts.

    Raises:
        InputError: a pattern matches nothing.
    """
    if not multipliers:
        return None
    factors: dict[torch.nn.Parameter, float] = {}
    for section in multipliers:
        name = "optimizer.multipliers"
        factors |= dict.fromkeys(_matching(decoder, section.parameters, name), section.lr)
    found: dict[ParamKey, Any] = dict(get_standard_config_overrides(config))
    for factor in sorted(set(factors.values()) - {1.0}):
        found[ParamKey(predicate=_has_factor(factors, factor))] = {"lr_mult": factor}
    return found


def _has_factor(factors: dict[torch.nn.Parameter, float], factor: float) -> ParamPredicate:
    return ParamPredicate(name=f"lr_mult_{factor}", fn=lambda param: factors.get(param) == factor)


def _matching(decoder: Decoder, pattern: str, key: str) -> list[torch.nn.Parameter]:
    named = list(named_tensors(decoder))
    found = [parameter for name, parameter in named if fnmatchcase(name, pattern)]
    if not found:
        names = ", ".join(
            name for name, _ in named if ".layers." not in name or ".layers.0." in name
        )
        raise InputError(f"{key}: no parameter is called {pattern!r}; there are {names}")
    return found


def _with_gradient(module: Any, inputs: Any, hidden: torch.Tensor) -> None:
    if module.training and torch.is_grad_enabled() and not hidden.requires_grad:
        hidden.requires_grad_()
