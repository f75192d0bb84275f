"""Other implementations of head and loss, each imported when it is first called.

pip install '.[bench]'; verl and quack-kernels too where they install (verl with --no-deps).
Each entry makes a function of (hidden [n, h], head [v, h], labels [n]) to the mean loss.
"""

import importlib.util
import sys
import types
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy, linear

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@cache
def compiled() -> Loss:
    return torch.compile(lambda hidden, head, labels: cross_entropy(linear(hidden, head), labels))


def chunked() -> Loss:
    """Torch's own linear cross-entropy, in chunks as it chooses."""
    try:
        from torch.nn import LinearCrossEntropyOptions
        from torch.nn.functional import linear_cross_entropy
    except ImportError:
        raise ModuleNotFoundError("torch 2.13 has linear_cross_entropy") from None
    return partial(linear_cross_entropy, options=LinearCrossEntropyOptions())


@cache
def liger() -> Loss:
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    return lambda *inputs: LigerFusedLinearCrossEntropyFunction.apply(*inputs)[0]


@cache
def cce(**settings: Any) -> Loss:
    from cut_cross_entropy import linear_cross_entropy

    return lambda *inputs: linear_cross_entropy(*inputs, impl="cce", **settings)


def cce_exact() -> Loss:
    """The wheel has no cce_exact: this is cce without its filter of small gradients."""
    return cce(filter_eps=None)


@cache
def megatron() -> Loss:
    """The logits of torch, then the fused loss over one rank's vocabulary."""
    from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    group = dist.group.WORLD

    def loss(hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits_sbv = linear(hidden, head)[:, None]
        return fused_vocab_parallel_cross_entropy(logits_sbv, labels[:, None], group).mean()

    return loss


@cache
def verl() -> Loss:
    """Its kernels alone: importing the package would import a training framework."""
    found = importlib.util.find_spec("verl")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("No module named 'verl'")
    for name in ("verl", "verl.utils", "verl.utils.kernel"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(found.origin).parent.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    return lambda *inputs: -linear_cross_entropy(*inputs, 1.0, "none")[0].mean()


@cache
def quack() -> Loss:
    """As its own module chooses: in chunks, but not at a vocabulary like 184,622."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy, linear_cross_entropy_func

    def loss(hidden: torch.Tensor, head: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if len(head) % 8:
            return linear_cross_entropy_func(hidden, head, None, labels)
        return chunked_linear_cross_entropy(hidden, head, labels)

    return loss


PEERS: dict[str, Callable[[], Loss]] = {
    "torch.compile": compiled,
    "torch (chunked)": chunked,
    "liger": liger,
    "cce": cce,
    "cce_exact": cce_exact,
    "megatron": megatron,
    "verl": verl,
    "quack": quack,
}
