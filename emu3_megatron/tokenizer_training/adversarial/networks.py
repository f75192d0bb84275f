"""Discriminators: PatchGAN for frames, and one for clips.

A patch of pixels gets one logit, above 0 where it looks like the truth. There is no BatchNorm: the
logits of a sample would depend on the samples beside it, so on the groups and ranks of a step.
"""

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from emu3_megatron.config.tokenizer_losses import AdversarialConfig
from emu3_megatron.tokenizer_training.losses.terms import at_least_fp32

_MOST_CHANNELS = 8  # times those of the first layer
_GROUPS = 8
_SLOPE = 0.2
_SPREAD = 0.02  # of the starting weights, as in pix2pix and taming-transformers

Conv = Callable[[int, int, int], nn.Module]  # channels before and after, stride


class Discriminators(nn.Module):
    """The discriminator of frames and, where there are clips, that of clips."""

    def __init__(self, section: AdversarialConfig, has_clips: bool):
        super().__init__()
        self.frames = nn.Sequential(*_layers(section, _of_frames))
        self.clips = nn.Sequential(*_layers(section, _of_clips)) if has_clips else None
        self.apply(_initialise)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Logits [b, n] of each discriminator that sees the samples, in fp32 or fp64.

        Args:
            pixels: images [b, 3, h, w], seen by the discriminator of frames; or clips
                [b, t, 3, h, w], seen by that of frames, each frame alone, and by that of clips.
        """
        if pixels.ndim == 4:
            return [_flat(self.frames(pixels))]
        assert self.clips is not None, "built for images alone"
        frames = self.frames(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2])
        return [_flat(frames), _flat(self.clips(pixels.transpose(1, 2)))]


def _flat(logits: Tensor) -> Tensor:
    return at_least_fp32(logits.flatten(1))


def _layers(section: AdversarialConfig, conv: Conv) -> Iterator[nn.Module]:
    """4x4 pixels each: `layers` convolutions that halve the sides, and two that keep them."""
    before = 3
    for index in range(section.layers + 1):
        channels = section.channels * min(2**index, _MOST_CHANNELS)
        yield conv(before, channels, 2 if index < section.layers else 1)
        if index > 0 and section.norm == "group":
            yield nn.GroupNorm(_GROUPS, channels)
        yield nn.LeakyReLU(_SLOPE, inplace=True)
        before = channels
    yield conv(before, 1, 1)


def _of_frames(before: int, after: int, stride: int) -> nn.Module:
    return nn.Conv2d(before, after, 4, stride, 1)


def _of_clips(before: int, after: int, stride: int) -> nn.Module:
    """3 frames, and no stride in time: training clips are short, 4 frames the least."""
    return nn.Conv3d(before, after, (3, 4, 4), (1, stride, stride), 1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        nn.init.normal_(module.weight, 0, _SPREAD)
        nn.init.zeros_(module.get_parameter("bias"))
    elif isinstance(module, nn.GroupNorm):
        nn.init.normal_(module.weight, 1, _SPREAD)
