"""The two-dimensional layers of MoVQ, which see one frame each, shapes [n, c, h, w].

Attribute names follow the released Emu3-VisionTokenizer, so that its weights load without a map.
"""

import torch
import torch.nn.functional as F
from emu3_kernels.group_norm_silu import group_norm_silu
from torch import Tensor, nn

from emu3_megatron.vision.block import Block, FrameNorm
from emu3_megatron.vision.precision import full_precision

GROUPS = 32  # every GroupNorm of the network; channels must be a multiple of it


def _fused(layer: FrameNorm, hidden_nchw: Tensor) -> bool:
    """Whether a kernel computes the norm and the SiLU after it: on a GPU, without gradients."""
    return hidden_nchw.is_cuda and not torch.is_grad_enabled() and layer.bands is None


class PlainNorm(FrameNorm):
    """GroupNorm that ignores the code vectors, so that it can stand where SpatialNorm does."""

    def __init__(self, channels: int):
        super().__init__(GROUPS, channels, eps=1e-6)

    @full_precision
    def forward(self, hidden_nchw: Tensor, code_nchw: Tensor | None = None) -> Tensor:
        return super().forward(hidden_nchw)

    def silu(self, hidden_nchw: Tensor, code_nchw: Tensor | None = None) -> Tensor:
        """SiLU of the norm."""
        if _fused(self, hidden_nchw):
            return group_norm_silu(hidden_nchw, GROUPS, self.weight, self.bias, self.eps)
        return F.silu(self(hidden_nchw))


class SpatialNorm(nn.Module):
    """GroupNorm whose scale and shift at each place come from the code vector lying there.

    The published form enlarges the code vectors to the size of `hidden` and then applies the 1x1
    convolutions. We convolve first and broadcast: the same numbers, without the large copies.
    """

    def __init__(self, channels: int, code_channels: int):
        super().__init__()
        self.norm_layer = FrameNorm(GROUPS, channels, eps=1e-6)
        self.conv_y = nn.Conv2d(code_channels, channels, 1)
        self.conv_b = nn.Conv2d(code_channels, channels, 1)

    @full_precision
    def forward(self, hidden_nchw: Tensor, code_nchw: Tensor) -> Tensor:
        height, width = code_nchw.shape[-2:]
        normed = self.norm_layer(hidden_nchw).unflatten(3, (width, -1)).unflatten(2, (height, -1))
        scale, shift = (x[:, :, :, None, :, None] for x in self._of_codes(code_nchw))
        return torch.addcmul(shift, normed, scale).flatten(4, 5).flatten(2, 3)

    def silu(self, hidden_nchw: Tensor, code_nchw: Tensor | None) -> Tensor:
        """SiLU of the norm."""
        assert code_nchw is not None
        norm = self.norm_layer
        if not _fused(norm, hidden_nchw):
            return F.silu(self(hidden_nchw, code_nchw))
        of_codes = self._of_codes(code_nchw)
        return group_norm_silu(hidden_nchw, GROUPS, norm.weight, norm.bias, norm.eps, *of_codes)

    @full_precision
    def _of_codes(self, code_nchw: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift at each code."""
        return self.conv_y(code_nchw), self.conv_b(code_nchw)


def make_norm(channels: int, code_channels: int | None) -> PlainNorm | SpatialNorm:
    """The decoder's norm where there are code vectors to follow, the encoder's otherwise."""
    return PlainNorm(channels) if code_channels is None else SpatialNorm(channels, code_channels)


class ResnetBlock(Block):
    halo = 2

    def __init__(self, in_channels: int, out_channels: int, code_channels: int | None = None):
        super().__init__()
        self.norm1 = make_norm(in_channels, code_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = make_norm(out_channels, code_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, input_nchw: Tensor, code_nchw: Tensor | None = None) -> Tensor:
        return self.run(self._compute, input_nchw, code_nchw)

    def _compute(self, input_nchw: Tensor, code_nchw: Tensor | None) -> Tensor:
        hidden_nchw = self.conv1(self.norm1.silu(input_nchw, code_nchw))
        hidden_nchw = self.conv2(self.norm2.silu(hidden_nchw, code_nchw))
        return self.nin_shortcut(input_nchw) + hidden_nchw


class AttentionBlock(Block):
    """Single-head attention among the places of one frame, with a residual path."""

    def __init__(self, channels: int, code_channels: int | None = None):
        super().__init__()
        self.norm = make_norm(channels, code_channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, input_nchw: Tensor, code_nchw: Tensor | None = None) -> Tensor:
        return self.run(self._compute, input_nchw, code_nchw)

    def _compute(self, input_nchw: Tensor, code_nchw: Tensor | None) -> Tensor:
        normed_nchw = self.norm(input_nchw, code_nchw)
        # [n, 1, h*w, c]: one head, every place a position. Channels side by side, as torch's
        # attention needs them so as not to hold all [h*w, h*w] scores.
        q, k, v = (
            conv(normed_nchw).flatten(2).transpose(1, 2).contiguous().unsqueeze(1)
            for conv in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed_nchw = mixed.squeeze(1).transpose(1, 2).reshape(input_nchw.shape)
        return input_nchw + self.proj_out(mixed_nchw)


class MiddleBlock(nn.Module):
    def __init__(self, channels: int, code_channels: int | None = None):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, code_channels)
        self.attn_1 = AttentionBlock(channels, code_channels)
        self.block_2 = ResnetBlock(channels, channels, code_channels)

    def forward(self, hidden_nchw: Tensor, code_nchw: Tensor | None = None) -> Tensor:
        hidden_nchw = self.block_1(hidden_nchw, code_nchw)
        hidden_nchw = self.attn_1(hidden_nchw, code_nchw)
        return self.block_2(hidden_nchw, code_nchw)


class Downsample(Block):
    """Halve height and width."""

    halo = 1

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, hidden_nchw: Tensor) -> Tensor:
        return self.run(self._compute, hidden_nchw)

    def _compute(self, hidden_nchw: Tensor, code_nchw: None) -> Tensor:
        return self.conv(F.pad(hidden_nchw, (0, 1, 0, 1)))  # only right and below, as published


class Upsample(Block):
    """Double height and width: every pixel becomes 2x2, then a 3x3 convolution.

    The 3x3 convolution sees 2x2 pixels of the small picture, for each of the four pixels that one
    becomes. So it is computed as four 2x2 convolutions of the small picture: 16 products instead
    of 36, and no large copy.
    """

    halo = 1

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden_nchw: Tensor) -> Tensor:
        return self.run(self._compute, hidden_nchw)

    def _compute(self, hidden_nchw: Tensor, code_nchw: None) -> Tensor:
        height, width = hidden_nchw.shape[-2:]
        # [right or left, below or above, o, i, 2, 2]
        weight = _merged_taps(_merged_taps(self.conv.weight, -2), -1).flatten(0, 2)
        bias = self.conv.get_parameter("bias").repeat(4)
        both = F.conv2d(hidden_nchw, weight, bias, padding=1).unflatten(1, (2, 2, -1))
        rows = []
        for below in range(2):
            neighbours = [
                both[:, right, below, :, below : below + height, right : right + width]
                for right in range(2)
            ]
            rows.append(torch.stack(neighbours, dim=-1))
        return torch.stack(rows, dim=3).flatten(4, 5).flatten(2, 3)


def _merged_taps(weight: Tensor, dim: int) -> Tensor:
    """Of 3 taps over doubled pixels, 2 taps over single ones: [2, ...] for the first and second."""
    first, middle, last = weight.unbind(dim)
    of_first = torch.stack((first, middle + last), dim)
    of_second = torch.stack((first + middle, last), dim)
    return torch.stack((of_first, of_second))


class Level(nn.Module):
    """The residual blocks of one resolution, each followed by attention where the level has it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        attention: bool,
        code_channels: int | None = None,
    ):
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(in_channels if i == 0 else out_channels, out_channels, code_channels)
            for i in range(blocks)
        )
        self.attn = nn.ModuleList(
            AttentionBlock(out_channels, code_channels) for _ in range(blocks if attention else 0)
        )

    def forward(self, hidden_nchw: Tensor, code_nchw: Tensor | None = None) -> Tensor:
        for i, block in enumerate(self.block):
            hidden_nchw = block(hidden_nchw, code_nchw)
            if self.attn:
                hidden_nchw = self.attn[i](hidden_nchw, code_nchw)
        return hidden_nchw
