"""Checks that everything is installed that training needs, and that every GPU answers."""

import importlib
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch
from emu3_kernels import cuda

from emu3_megatron.errors import InputError

_OPTIONAL = ("triton", "transformer-engine", "flash-attn", "apex", "tensorboard", "wandb")


def report() -> Iterator[str]:
    """Lines for a person.

    Raises:
        InputError: training could not start here.
    """
    yield f"Python {platform.python_version()}, torch {torch.__version__}"
    try:
        importlib.import_module("emu3_megatron.training")
    except ImportError as error:
        raise InputError(f"{error}; install the project again: pip install emu3-megatron") from None
    yield f"megatron-core {version('megatron-core')}: the training loop imports"
    yield "also installed: " + (", ".join(_installed()) or "nothing optional")
    if not torch.cuda.is_available():
        yield "no GPU: everything runs on the CPU, in small"
        return
    for index in range(torch.cuda.device_count()):
        yield _device(index)
    library = "loaded" if cuda.available() else "not built or another GPU: Triton serves instead"
    yield f"own CUDA kernels: {library}"


def _installed() -> Iterator[str]:
    for name in _OPTIONAL:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


def _device(index: int) -> str:
    """One GPU, asked to multiply."""
    name = torch.cuda.get_device_name(index)
    try:
        ones = torch.ones(16, 16, device=f"cuda:{index}")
        answers = float((ones @ ones).sum()) == 16**3
    except RuntimeError as error:
        raise InputError(f"GPU {index} ({name}): {error}".splitlines()[0]) from None
    if not answers:
        raise InputError(f"GPU {index} ({name}) computes wrongly; take it out of service")
    return f"GPU {index}: {name}"
