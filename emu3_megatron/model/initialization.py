"""Initial weights that no parallel layout changes."""

import hashlib

import torch
from megatron.core import parallel_state

from emu3_megatron.vocabulary import Vocabulary


@torch.no_grad()
def initialize(decoder: torch.nn.Module, vocabulary: Vocabulary, *, std: float, seed: int) -> None:
    """Draw every matrix from normal(0, std), whole, from (seed, its name), and keep our share.

    Norm weights stay 1; the embedding of padding is 0 (modeling_emu3.py, `_init_weights`).
    """
    for name, parameter in decoder.named_parameters():
        if parameter.dim() < 2:
            continue
        whole = _draw(name, parameter, vocabulary, std, seed)
        parameter.copy_(_share(whole, parameter))


def _draw(
    name: str, parameter: torch.nn.Parameter, vocabulary: Vocabulary, std: float, seed: int
) -> torch.Tensor:
    shape = list(parameter.shape)
    shape[parameter.partition_dim] *= parallel_state.get_tensor_model_parallel_world_size()  # type: ignore[attr-defined]
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator(device=parameter.device)
    generator.manual_seed(int.from_bytes(digest[:7], "big"))
    in_vocabulary = name.startswith(("embedding.", "head."))
    rows = vocabulary.size if in_vocabulary else shape[0]
    whole = torch.zeros(shape, device=parameter.device)
    whole[:rows].normal_(0, std, generator=generator)
    if name.startswith("embedding."):
        whole[vocabulary.pad] = 0
    return whole


def _share(whole: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """Our part, as Megatron cuts it: a stride of 2 holds gate and up in each rank's share."""
    size = parallel_state.get_tensor_model_parallel_world_size()
    rank = parallel_state.get_tensor_model_parallel_rank()
    dim, stride = parameter.partition_dim, parameter.partition_stride  # type: ignore[attr-defined]
    pieces = whole.chunk(size * stride, dim)
    return torch.cat(pieces[rank::size], dim)
