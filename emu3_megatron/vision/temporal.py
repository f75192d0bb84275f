"""The layers that see several frames, never a later one, shapes [b, c, t, h, w]."""

import torch.nn.functional as F
from torch import Tensor, nn

from emu3_megatron.vision.precision import full_precision


class CausalConv3d(nn.Module):
    """Conv3d padded with zeros on the past side only, so that frame t never sees frame t+1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int, int],
        stride: tuple[int, int, int] = (1, 1, 1),
    ):
        super().__init__()
        past = kernel[0] - stride[0]
        rows, columns = kernel[1] // 2, kernel[2] // 2
        self.padding = (columns, columns, rows, rows, past, 0)  # F.pad counts from the last axis
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride)

    @full_precision
    def forward(self, hidden_bcthw: Tensor) -> Tensor:
        return self.conv(F.pad(hidden_bcthw, self.padding))


class TemporalResnetBlock(nn.Module):
    """Residual block with BatchNorm: causal in eval mode only, and the statistics are weights."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.BatchNorm3d(channels)
        self.conv1 = CausalConv3d(channels, channels, (3, 3, 3))
        self.norm2 = nn.BatchNorm3d(channels)
        self.conv2 = CausalConv3d(channels, channels, (3, 3, 3))

    def forward(self, input_bcthw: Tensor) -> Tensor:
        hidden_bcthw = self.conv1(F.silu(self.norm1(input_bcthw)))
        return input_bcthw + self.conv2(F.silu(self.norm2(hidden_bcthw)))


class TemporalDownsample(nn.Module):
    """Halve the number of frames."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = CausalConv3d(channels, channels, (4, 3, 3), stride=(2, 1, 1))

    def forward(self, hidden_bcthw: Tensor) -> Tensor:
        return self.conv(hidden_bcthw)


class TemporalUpsample(nn.Module):
    """Double the number of frames."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = CausalConv3d(channels, channels, (3, 3, 3))

    def forward(self, hidden_bcthw: Tensor) -> Tensor:
        return self.conv(hidden_bcthw.repeat_interleave(2, dim=2))
