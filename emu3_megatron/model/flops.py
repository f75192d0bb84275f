"""Counts the decoder's floating point operations, and knows what GPUs can do."""

import torch

from emu3_megatron.config import ModelConfig

# Dense bf16 peaks in FLOP/s, from NVIDIA's data sheets.
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}


def flops_per_token(model: ModelConfig, context: int, frozen: bool = False) -> float:
    """Training FLOPs of one token: 6 x matrix parameters, and causal attention (half the square).

    The head counts, the embedding does not. Recomputation is not counted.

    Args:
        frozen: the matrices have no gradients, which are a third of their work; adapters are not
            counted.
    """
    attention = model.hidden * model.head_dim * (2 * model.heads + 2 * model.kv_heads)
    layer = attention + 3 * model.hidden * model.ffn
    head = model.hidden * model.vocabulary().size
    pairs = context / 2
    scores = 2 * 2 * pairs * model.heads * model.head_dim * model.layers
    return (4 if frozen else 6) * (layer * model.layers + head) + 3 * scores


def peak_flops() -> float | None:
    """Peak of this rank's device in FLOP/s, where it is known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)
