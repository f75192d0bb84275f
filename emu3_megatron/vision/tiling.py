"""Large images and long clips in less memory, with the results of the whole.

A tile of an image that went through the network alone would differ from the whole everywhere:
GroupNorm and attention see all of a frame. So a frame goes through block by block, and each block
takes some rows at a time, with the statistics of the whole frame. In a clip the network looks back
a fixed number of frames: pieces that are given those have no seams.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emu3_megatron.vision.block import Block, Compute, FrameNorm
from emu3_megatron.vision.tokenizer import TEMPORAL_FACTOR, VisionTokenizer, require_whole_group


@contextmanager
def in_bands(tokenizer: VisionTokenizer, pixels: int = 2**18) -> Iterator[None]:
    """Inside, encoding and decoding take about so many places of a block's input at a time.

    A block then needs its input, its output and little more: half the memory or less. What comes
    before the second norm of a block is computed twice.
    """
    layers = [m for m in tokenizer.modules() if isinstance(m, Block | FrameNorm)]
    bands = Bands(pixels)
    for layer in layers:
        layer.bands = bands
    try:
        yield
    finally:
        for layer in layers:
            layer.bands = None


class _Gathered(Exception):
    """A norm saw a band of a frame whose statistics are not known yet."""


class Bands:
    """Runs a block band by band: once for each of its norms to gather statistics, and once more."""

    def __init__(self, pixels: int):
        self.pixels = pixels
        self._known: dict[nn.Module, _Statistics] = {}
        self._inner: slice | None = None  # the rows of a band that are no other band's

    def run(self, compute: Compute, halo: int, hidden: Tensor, code: Tensor | None) -> Tensor:
        """See `block.BandRunner`."""
        out = None
        while out is None:
            out = self._pass(compute, halo, hidden, code)
        self._known, self._inner = {}, None
        return out

    def _pass(
        self, compute: Compute, halo: int, hidden: Tensor, code: Tensor | None
    ) -> Tensor | None:
        """All bands; None where only the statistics of another norm were gathered."""
        height, width = hidden.shape[-2:]
        # bands begin where a row of codes does, and where two rows become one
        unit = 2 if code is None else height // code.shape[-2]
        rows = max(1, self.pixels // (hidden.shape[0] * width * unit)) * unit
        halo = -(-halo // unit) * unit
        out: Tensor | None = None
        for first in range(0, height, rows):
            last = min(first + rows, height)
            start, end = max(0, first - halo), min(height, last + halo)
            self._inner = slice(first - start, last - start)
            codes = None if code is None else code[..., start // unit : end // unit, :]
            with suppress(_Gathered):
                band = compute(hidden[..., start:end, :], codes)
                scale = Fraction(band.shape[-2], end - start)  # a block may halve or double rows
                if out is None:
                    out = band.new_empty(*band.shape[:2], int(height * scale), band.shape[3])
                inner = band[..., int((first - start) * scale) : int((last - start) * scale), :]
                out[..., int(first * scale) : int(last * scale), :] = inner
        for statistics in self._known.values():
            statistics.complete = True
        return out

    def norm(self, layer: nn.GroupNorm, rows: Tensor) -> Tensor:
        """See `block.BandRunner`."""
        if self._inner is None:  # a block that sees whole frames
            return F.group_norm(rows, layer.num_groups, layer.weight, layer.bias, layer.eps)
        statistics = self._known.setdefault(layer, _Statistics())
        if not statistics.complete:
            statistics.add(rows[..., self._inner, :], layer.num_groups)
            raise _Gathered
        return statistics.apply(layer, rows)


class _Statistics:
    """Sums over the bands of a frame, by group."""

    def __init__(self) -> None:
        self.complete = False
        self.count, self.sum, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, rows_nchw: Tensor, groups: int) -> None:
        values_ngr = rows_nchw.unflatten(1, (groups, -1)).flatten(2).double()
        self.count += values_ngr.shape[2]
        self.sum = self.sum.to(values_ngr) + values_ngr.sum(2)
        self.squares = self.squares.to(values_ngr) + values_ngr.square().sum(2)

    def apply(self, layer: nn.GroupNorm, rows_nchw: Tensor) -> Tensor:
        mean_ng = self.sum / self.count
        variance_ng = (self.squares / self.count - mean_ng.square()).clamp_min(0)
        each = rows_nchw.shape[1] // layer.num_groups
        rstd_nc = (variance_ng + layer.eps).rsqrt().repeat_interleave(each, 1)
        scale_nc = rstd_nc * layer.weight
        shift_nc = layer.bias - mean_ng.repeat_interleave(each, 1) * scale_nc
        scale, shift = (x.to(rows_nchw.dtype)[:, :, None, None] for x in (scale_nc, shift_nc))
        return torch.addcmul(shift, rows_nchw, scale)


@torch.no_grad()
def encode_pieces(tokenizer: VisionTokenizer, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
    """Codes [f, h / 8, w / 8] of a clip that comes in pieces, as `encode_clips` gives them.

    Args:
        pieces: pixels [t, 3, h, w], t of any size. What follows the last whole four frames is left
            out, fewer than 4 frames are an InputError.
    """
    past = 4 * tokenizer.network.num_res_blocks + 4  # latents that the layers of time look back
    frames_bcthw: Tensor | None = None  # latents of the frames that matter still
    given = count = 0  # codes of these, and frames of all
    for pixels_tchw in pieces:
        count += len(pixels_tchw)
        new = tokenizer.frame_latents(pixels_tchw).transpose(0, 1)[None]
        frames_bcthw = new if frames_bcthw is None else torch.cat((frames_bcthw, new), 2)
        groups = frames_bcthw.shape[2] // TEMPORAL_FACTOR
        if groups > given:
            latents = tokenizer.merge_frames(frames_bcthw[:, :, : groups * TEMPORAL_FACTOR])
            yield tokenizer.quantize.nearest(latents[:, :, given:]).squeeze(0)
            given = min(groups, past)
            frames_bcthw = frames_bcthw[:, :, (groups - given) * TEMPORAL_FACTOR :]
    require_whole_group(count)


@torch.no_grad()
def decode_pieces(
    tokenizer: VisionTokenizer, codes_fhw: Tensor, at_once: int = 4
) -> Iterator[Tensor]:
    """Pixels [4f, 3, 8h, 8w] of a clip's codes, of `at_once` latents at a time."""
    past = 4 * tokenizer.network.num_res_blocks + 4
    for first in range(0, len(codes_fhw), at_once):
        start = max(0, first - past)
        vectors = tokenizer.quantize.lookup(codes_fhw[None, start : first + at_once])
        stretched = tokenizer.stretch_vectors(vectors)
        new = (tensor[:, :, (first - start) * TEMPORAL_FACTOR :] for tensor in stretched)
        yield tokenizer.frame_pixels(*new).squeeze(0)
