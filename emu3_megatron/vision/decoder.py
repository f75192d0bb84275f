"""Decodes code vectors to pixels: time is stretched by four, then a 2D network for each frame."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.vision.block import Block
from emu3_megatron.vision.blocks import Level, MiddleBlock, SpatialNorm, Upsample
from emu3_megatron.vision.precision import FullPrecisionConv2d
from emu3_megatron.vision.temporal import TemporalResnetBlock, TemporalUpsample


class UpLevel(Level):
    """A level of the decoder; all but the last, level 0, end in twice the size."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        blocks: int,
        attention: bool,
        code_channels: int,
        last: bool,
    ):
        super().__init__(in_channels, out_channels, blocks, attention, code_channels)
        self.upsample = nn.Identity() if last else Upsample(out_channels)

    def forward(self, hidden_nchw: Tensor, code_nchw: Tensor | None = None) -> Tensor:
        return self.upsample(super().forward(hidden_nchw, code_nchw))


class Decoder(Block):
    """The modulating decoder of MoVQ: code vectors also steer the norm of every 2D layer.

    As a block it is its last layers, from the last level to pixels.
    """

    halo = 1

    def __init__(self, network: TokenizerNetwork):
        super().__init__()
        widths = network.level_channels
        latent, code = network.latent_channels, network.embed_dim
        self.conv_in = nn.Conv2d(latent, widths[-1], 3, padding=1)
        self.mid = MiddleBlock(widths[-1], code)
        self.up = nn.ModuleList(
            UpLevel(
                in_channels=widths[min(i + 1, len(widths) - 1)],
                out_channels=widths[i],
                blocks=network.num_res_blocks + 1,
                attention=i in network.attention_levels,
                code_channels=code,
                last=i == 0,
            )
            for i in range(len(widths))
        )
        self.norm_out = SpatialNorm(widths[0], code)
        self.conv_out = FullPrecisionConv2d(widths[0], 3, 3, padding=1)
        self.time_conv = nn.ModuleList(TemporalUpsample(latent) for _ in range(2))
        self.time_res_stack = nn.ModuleList(
            TemporalResnetBlock(latent) for _ in range(network.num_res_blocks)
        )

    def stretch_time(self, latent_bcfhw: Tensor, code_bcfhw: Tensor) -> tuple[Tensor, Tensor]:
        """Both [b, c, f, h, w] to [b, c, 4f, h, w], through the same layers."""
        # one batch, as published: it also makes the BatchNorm statistics those of both
        both = torch.cat((latent_bcfhw, code_bcfhw))
        for block in self.time_res_stack:
            both = block(both)
        for upsample in self.time_conv:
            both = F.silu(upsample(both))
        latent_bcthw, code_bcthw = both.chunk(2)
        return latent_bcthw, code_bcthw

    def decode_frames(self, latent_nchw: Tensor, code_nchw: Tensor) -> Tensor:
        """[n, c, h, w] to pixels [n, 3, 8h, 8w], each frame on its own."""
        hidden_nchw = self.mid(self.conv_in(latent_nchw), code_nchw)
        for level in reversed(self.up):
            hidden_nchw = level(hidden_nchw, code_nchw)
        return self.run(self._pixels, hidden_nchw, code_nchw)

    def _pixels(self, hidden_nchw: Tensor, code_nchw: Tensor) -> Tensor:
        return self.conv_out(self.norm_out.silu(hidden_nchw, code_nchw))
