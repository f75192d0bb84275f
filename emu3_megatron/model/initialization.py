"""Initial weights that no parallel layout changes."""

import hashlib
from collections.abc import Sequence

import torch

from emu3_megatron import progress
from emu3_megatron.model.tensors import EMBEDDING, is_in_vocabulary, named_tensors
from emu3_megatron.parallel.groups import tensor_rank, tensor_size
from emu3_megatron.vocabulary import Vocabulary


@torch.no_grad()
def initialize(decoder: torch.nn.Module, vocabulary: Vocabulary, *, std: float, seed: int) -> None:
    """Draw every matrix from normal(0, std), whole, from (seed, its name), and keep our share.

    Norm weights stay 1; the embedding of padding is 0 (modeling_emu3.py, `_init_weights`).
    """
    for name, parameter in named_tensors(decoder):
        if parameter.dim() < 2:
            continue
        shape = list(parameter.shape)
        shape[parameter.partition_dim] *= tensor_size()  # type: ignore[attr-defined]
        whole = draw(name, shape, vocabulary, std=std, seed=seed, device=parameter.device)
        parameter.copy_(_share(whole, parameter))
        progress.mark()


def draw(
    name: str,
    shape: Sequence[int],
    vocabulary: Vocabulary,
    *,
    std: float,
    seed: int,
    device: torch.device,
) -> torch.Tensor:
    """A whole matrix of initial weights, fp32; rows past the vocabulary are 0."""
    generator = generator_of(f"{seed}/{name}", device)
    rows = vocabulary.size if is_in_vocabulary(name) else shape[0]
    whole = torch.zeros(tuple(shape), device=device)
    whole[:rows].normal_(0, std, generator=generator)
    if name == EMBEDDING:
        whole[vocabulary.pad] = 0
    return whole


def generator_of(key: str, device: torch.device) -> torch.Generator:
    """A source of random numbers that a key decides, whichever rank asks."""
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:7], "big"))


def _share(whole: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """Our part, as Megatron cuts it: a stride of 2 holds gate and up in each rank's share."""
    size = tensor_size()
    rank = tensor_rank()
    dim, stride = parameter.partition_dim, parameter.partition_stride  # type: ignore[attr-defined]
    pieces = whole.chunk(size * stride, dim)
    return torch.cat(pieces[rank::size], dim)
