"""What Megatron-LM's GPTModel calls the decoder's tensors."""

from emu3_megatron.model.tensors import EMBEDDING, FINAL_NORM, FUSED_NORMS, HEAD

_OUTER = {
    EMBEDDING: EMBEDDING,
    FINAL_NORM: "decoder.final_layernorm.weight",
    HEAD: "output_layer.weight",
}
THEIR_HEAD = _OUTER[HEAD]


def theirs(ours: str) -> str:
    """The name of a tensor in GPTModel's state: its norms stand alone, as in our layers."""
    return _OUTER.get(ours, ours.replace("block.layers.", "decoder.layers.", 1))


def fused(name: str) -> str:
    """The name of a tensor of TransformerEngine's layers, where norms belong to a linear layer.

    Distributed checkpoints of GPTModel have these names whatever its layers are.
    """
    for with_linear, alone in FUSED_NORMS.items():
        name = name.replace(f".{alone}", f".{with_linear}")
    return name
