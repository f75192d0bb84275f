"""Sets the weights before training: temporal layers begin near the identity.

Emu3's tokenizer grew out of an image tokenizer. Ours begins likewise: latents are a handful of
channels, and random layers of time, one after the other, would leave the codes nearly nothing of
the picture. So these start close to the identity, and SpatialNorm close to GroupNorm.
"""

import torch
import torch.nn.functional as F
from torch import nn

from emu3_megatron.vision.blocks import AttentionBlock, ResnetBlock, SpatialNorm
from emu3_megatron.vision.decoder import Decoder
from emu3_megatron.vision.encoder import Encoder
from emu3_megatron.vision.temporal import CausalConv3d, TemporalResnetBlock

_SHIFT = 1.5  # around it SiLU has slope 1 and is nearly straight, so a latent keeps both its signs
_SHIFTED = F.silu(torch.tensor(_SHIFT)).item()
_RESIDUAL = (ResnetBlock, AttentionBlock, TemporalResnetBlock)
_LAST = ("conv2", "proj_out")  # the last layer of a residual block
_RANDOM = 0.1  # what is left of the random weights beside the identity


@torch.no_grad()
def initialise(encoder: Encoder, decoder: Decoder, *time_convs: CausalConv3d) -> None:
    """Set the starting weights, in place; the first of `time_convs` makes the latents."""
    for module in nn.ModuleList((encoder, decoder, *time_convs)).modules():
        if isinstance(module, CausalConv3d):
            _pass_through(module)
        elif isinstance(module, SpatialNorm):
            _follow_no_code(module)
    for module in nn.ModuleList((encoder, decoder)).modules():
        if isinstance(module, _RESIDUAL):
            _add_nothing(module)
    for first, second in (encoder.time_conv, decoder.time_conv):
        nn.init.constant_(first.get_parameter("conv.conv.bias"), _SHIFT)
        nn.init.constant_(second.get_parameter("conv.conv.bias"), _SHIFT - _SHIFTED)
    nn.init.constant_(time_convs[0].get_parameter("conv.bias"), -_SHIFTED)
    decoder.conv_out.weight.mul_(_RANDOM)  # a grey picture


def _add_nothing(block: nn.Module) -> None:
    """A residual block starts as its shortcut: at a high rate, tiny learns twice as fast so."""
    last = next(name for name in _LAST if hasattr(block, name))
    for parameter in getattr(block, last).parameters():
        nn.init.zeros_(parameter)


def _pass_through(layer: CausalConv3d) -> None:
    """The newest frame, or the mean of those that the stride merges."""
    conv = layer.conv
    merged = conv.stride[0]
    rows, columns = (size // 2 for size in conv.kernel_size[1:])
    conv.weight.mul_(_RANDOM)
    for channel in range(min(conv.in_channels, conv.out_channels)):
        conv.weight[channel, channel, -merged:, rows, columns] += 1 / merged
    nn.init.zeros_(conv.get_parameter("bias"))


def _follow_no_code(norm: SpatialNorm) -> None:
    """Scale 1 and shift 0 where the code vector, after the layers of time, is at its centre."""
    for conv, value in ((norm.conv_y, 1.0), (norm.conv_b, 0.0)):
        conv.get_parameter("bias").copy_(value - _SHIFTED * conv.weight.sum((1, 2, 3)))
