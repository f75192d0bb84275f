"""Encodes pixels to latents: a 2D network for each frame, then time is shortened by four."""

import torch.nn.functional as F
from torch import Tensor, nn

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.vision.block import Block
from emu3_megatron.vision.blocks import Downsample, Level, MiddleBlock, PlainNorm
from emu3_megatron.vision.precision import FullPrecisionConv2d
from emu3_megatron.vision.temporal import TemporalDownsample, TemporalResnetBlock


class DownLevel(Level):
    """A level of the encoder; all but the last end in half the size."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, attention: bool, last: bool
    ):
        super().__init__(in_channels, out_channels, blocks, attention)
        self.downsample = nn.Identity() if last else Downsample(out_channels)

    def forward(self, hidden_nchw: Tensor, code_nchw: Tensor | None = None) -> Tensor:
        return self.downsample(super().forward(hidden_nchw, code_nchw))


class Encoder(Block):
    """Both networks; as a block it is its last layers, from the last level to latents."""

    halo = 1

    def __init__(self, network: TokenizerNetwork):
        super().__init__()
        widths = network.level_channels
        latent = network.latent_channels
        self.conv_in = nn.Conv2d(3, network.base_channels, 3, padding=1)
        self.down = nn.ModuleList(
            DownLevel(
                in_channels=widths[i - 1] if i else network.base_channels,
                out_channels=widths[i],
                blocks=network.num_res_blocks,
                attention=i in network.attention_levels,
                last=i == len(widths) - 1,
            )
            for i in range(len(widths))
        )
        self.mid = MiddleBlock(widths[-1])
        self.norm_out = PlainNorm(widths[-1])
        self.conv_out = FullPrecisionConv2d(widths[-1], latent, 3, padding=1)
        self.time_conv = nn.ModuleList(TemporalDownsample(latent) for _ in range(2))
        self.time_res_stack = nn.ModuleList(
            TemporalResnetBlock(latent) for _ in range(network.num_res_blocks)
        )

    def encode_frames(self, pixels_nchw: Tensor) -> Tensor:
        """[n, 3, 8h, 8w] to [n, c, h, w], each frame on its own."""
        return self.run(self._latents, self._levels(pixels_nchw))

    def features(self, pixels_nchw: Tensor) -> Tensor:
        """What the latents are made of: as `encode_frames`, with the channels of the last level."""
        return self.norm_out.silu(self._levels(pixels_nchw))

    def _levels(self, pixels_nchw: Tensor) -> Tensor:
        hidden_nchw = self.conv_in(pixels_nchw)
        for level in self.down:
            hidden_nchw = level(hidden_nchw)
        return self.mid(hidden_nchw)

    def _latents(self, hidden_nchw: Tensor, code_nchw: None) -> Tensor:
        return self.conv_out(self.norm_out.silu(hidden_nchw))

    def shorten_time(self, frames_bcthw: Tensor) -> Tensor:
        """[b, c, t, h, w] to [b, c, t // 4, h, w]; latent j has seen frames 0 to 4j + 3."""
        for downsample in self.time_conv:
            frames_bcthw = F.silu(downsample(frames_bcthw))
        for block in self.time_res_stack:
            frames_bcthw = block(frames_bcthw)
        return frames_bcthw
