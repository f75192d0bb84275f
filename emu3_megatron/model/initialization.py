"""Initial weights that no parallel layout changes."""

import hashlib

import torch

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
        whole = _draw(name, parameter, vocabulary, std, seed)
        parameter.copy_(_share(whole, parameter))


def _draw(
    name: str, parameter: torch.nn.Parameter, vocabulary: Vocabulary, std: float, seed: int
) -> torch.Tensor:
    shape = list(parameter.shape)
    shape[parameter.partition_dim] *= tensor_size()  # type: ignore[attr-defined]
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator(device=parameter.device)
    generator.manual_seed(int.from_bytes(digest[:7], "big"))
    rows = vocabulary.size if is_in_vocabulary(name) else shape[0]
    whole = torch.zeros(shape, device=parameter.device)
    whole[:rows].normal_(0, std, generator=generator)
    if name == EMBEDDING:
        whole[vocabulary.pad] = 0
    return whole


def _share(whole: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """Our part, as Megatron cuts it: a stride of 2 holds gate and up in each rank's share."""
    size = tensor_size()
    rank = tensor_rank()
    dim, stride = parameter.partition_dim, parameter.partition_stride  # type: ignore[attr-defined]
    pieces = whole.chunk(size * stride, dim)
    return torch.cat(pieces[rank::size], dim)
