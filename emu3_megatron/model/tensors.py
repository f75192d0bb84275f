"""Names of the decoder's tensors, alike whichever layer spec holds them."""

from collections.abc import Iterator

import torch

EMBEDDING = "embedding.word_embeddings.weight"
HEAD = "head.weight"
FINAL_NORM = "block.final_layernorm.weight"

# Prefixes inside a layer of TransformerEngine's spec, which fuses each norm with the linear layer
# behind it, and the names that the tensors have everywhere else.
FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}


def named_tensors(decoder: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The decoder's parameters under the names that checkpoints, seeds and conversion use."""
    for name, parameter in decoder.named_parameters():
        yield _name(name), parameter


def _name(name: str) -> str:
    for fused, alone in FUSED_NORMS.items():
        name = name.replace(fused, alone)
    return name


def is_in_vocabulary(name: str) -> bool:
    """Whether a tensor has a row for each id of the vocabulary."""
    return name in (EMBEDDING, HEAD)


def layer_and_kind(name: str) -> tuple[str, str]:
    """`block.layers.7.mlp.linear_fc1.weight` to `7` and `mlp.linear_fc1`."""
    layer, kind = name.removeprefix("block.layers.").removesuffix(".weight").split(".", 1)
    return layer, kind
