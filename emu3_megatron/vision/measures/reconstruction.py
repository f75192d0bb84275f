"""What is left of images and clips once they are encoded and decoded, file by file.

Pixels are rounded to 8 bits before they are compared. Every image and every clip counts once,
however they were batched and whichever process measured them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from emu3_megatron.vision.files import At, Batch, Failed, Kind, batches
from emu3_megatron.vision.measures.seams import Steps, steps_of
from emu3_megatron.vision.measures.sharpness import gradient_b
from emu3_megatron.vision.measures.similarity import EXACT_DB, SSIM_SIDE, psnr_b, ssim_b
from emu3_megatron.vision.measures.usage import Usage, counts_of, usage_of
from emu3_megatron.vision.tokenizer import VisionTokenizer

Watch = Callable[[Path, Tensor, Tensor], None]
"""Is shown each file: path, and the bytes [t, 3, h, w] that went in and that came out."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""Of two sets of images [n, 3, h, w] in [-1, 1], the distance of each pair [n]: LPIPS."""

_LPIPS_SIDE = 32


@dataclass(frozen=True)
class Codec:
    """What is measured.

    Attributes:
        rebuild: pixels [b, 3, h, w] or [b, t, 3, h, w] in [-1, 1] to what is left of them, and to
            their codes, if it has such.
        codebook_size: of these codes.
    """

    rebuild: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    codebook_size: int = 0


@dataclass(frozen=True)
class Kept:
    """Measures of one file; of a clip the means over its frames.

    Attributes:
        size: pixels that it was measured at, height x width.
        frames: of a clip; 1 of an image.
        codes: different ones among its codes; 0 where there are none.
        psnr: in dB, 100 at most.
        gradients: mean gradient magnitude of what went in and of what came out.
        steps: of a clip's frames, of what went in and of what came out.
    """

    path: Path
    kind: Kind
    size: tuple[int, int]
    frames: int
    codes: int
    psnr: float
    ssim: float
    lpips: float | None
    gradients: tuple[float, float]
    steps: tuple[Steps, Steps] | None


@dataclass(frozen=True)
class Measured:
    """Measures of files.

    Attributes:
        failed: files that could not be used.
        broken: files that were rebuilt with NaN in them.
        counts: how often each code occurred, by kind.
    """

    kept: Sequence[Kept] = ()
    failed: Sequence[Failed] = ()
    broken: Sequence[Failed] = ()
    counts: dict[Kind, Tensor] = field(default_factory=dict)

    def of_kind(self, kind: Kind) -> list[Kept]:
        return [kept for kept in self.kept if kept.kind == kind]

    def usage(self, kind: Kind) -> Usage | None:
        return usage_of(self.counts[kind]) if kind in self.counts else None


def joined(parts: Sequence[Measured]) -> Measured:
    """What several processes measured, in the order of the files' names."""
    counts: dict[Kind, Tensor] = {}
    for part in parts:
        for kind, counts_k in part.counts.items():
            counts[kind] = counts.get(kind, torch.zeros_like(counts_k)) + counts_k
    return Measured(
        sorted((kept for part in parts for kept in part.kept), key=lambda kept: kept.path),
        sorted((failed for part in parts for failed in part.failed), key=lambda f: f.path),
        sorted((broken for part in parts for broken in part.broken), key=lambda b: b.path),
        counts,
    )


def codec_of(tokenizer: VisionTokenizer, independent_groups: bool = False) -> Codec:
    """Encodes and decodes.

    Args:
        independent_groups: every 4 frames of a clip by themselves, as the published script does.
    """

    def rebuild(pixels: Tensor) -> tuple[Tensor, Tensor]:
        # On a CPU a batch of one goes through other convolutions, with other last bits.
        given = pixels if len(pixels) > 1 else torch.cat([pixels, pixels])
        given = given.to(next(tokenizer.parameters()).device)
        if given.dim() == 4:
            codes = tokenizer.encode_images(given)
            shown = tokenizer.decode_images(codes)
        else:
            codes = tokenizer.encode_clips(given, independent_groups)
            shown = tokenizer.decode_clips(codes, independent_groups)
        return shown[: len(pixels)], codes[: len(pixels)]

    return Codec(rebuild, tokenizer.network.codebook_size)


def measure(
    codec: Codec,
    paths: Sequence[Path],
    at: At,
    *,
    batch: int = 8,
    lpips: Distance | None = None,
    watch: Watch | None = None,
) -> Measured:
    """Measure files.

    Args:
        batch: files of one shape that go through at once; changes no number on a CPU.
    """
    kept: list[Kept] = []
    failed: list[Failed] = []
    broken: list[Failed] = []
    counts: dict[Kind, Tensor] = {}
    for found in batches(paths, at, batch):
        if isinstance(found, Failed):
            failed.append(found)
            continue
        if min(found.pixels.shape[-2:]) < (least := _LPIPS_SIDE if lpips else SSIM_SIDE):
            reason = f"a side under {least} pixels, which {'LPIPS' if lpips else 'SSIM'} needs"
            failed += [Failed(path, reason) for path in found.paths]
            continue
        rebuilt, codes = codec.rebuild(found.pixels)
        for index, path, given, shown in _files(found, rebuilt):
            if bad := int(shown.isnan().sum()):
                broken.append(Failed(path, f"NaN in {bad:,} of {shown.numel():,} rebuilt values"))
                continue
            given, shown = _bytes(given), _bytes(shown)
            own = None if codes is None else codes[index].cpu()
            kept.append(_compare(path, found.kind, given, shown, own, lpips))
            if own is not None:
                found_k = counts_of(own, codec.codebook_size)
                counts[found.kind] = counts.get(found.kind, torch.zeros_like(found_k)) + found_k
            if watch:
                watch(path, given, shown)
    return joined([Measured(kept, failed, broken, counts)])


def _files(batch: Batch, rebuilt: Tensor) -> Iterator[tuple[int, Path, Tensor, Tensor]]:
    """Each file of a batch as frames [t, 3, h, w]."""
    for index, path in enumerate(batch.paths):
        given, shown = batch.pixels[index], rebuilt[index].float().cpu()
        if batch.kind == "image":
            given, shown = given[None], shown[None]
        yield index, path, given, shown


def _bytes(pixels: Tensor) -> Tensor:
    return pixels.clamp(-1, 1).add(1).mul(127.5).round().byte()


def _compare(
    path: Path,
    kind: Kind,
    given_tchw: Tensor,
    shown_tchw: Tensor,
    codes: Tensor | None,
    lpips: Distance | None,
) -> Kept:
    given, shown = (bytes_tchw.double() / 255 for bytes_tchw in (given_tchw, shown_tchw))
    distance = None
    if lpips:
        distance = lpips(given.float() * 2 - 1, shown.float() * 2 - 1).mean().item()
    before, after = steps_of(given), steps_of(shown)
    return Kept(
        path,
        kind,
        (given.shape[-2], given.shape[-1]),
        len(given),
        0 if codes is None else len(codes.unique()),
        psnr_b(given, shown).clamp(max=EXACT_DB).mean().item(),
        ssim_b(given, shown).mean().item(),
        distance,
        (gradient_b(given).mean().item(), gradient_b(shown).mean().item()),
        (before, after) if before and after else None,
    )


def means(kept: Sequence[Kept]) -> dict[str, float]:
    """Means over files, each counting once; ratios are of such means.

    Returns:
        PSNR and SSIM; LPIPS where it was measured; `sharpness`, the gradient of what came out over
        that of what went in; of clips `seam ratio` and `seam ratio of the originals`, the step
        across the borders of groups over that within groups.
    """
    found = {"PSNR": fmean(k.psnr for k in kept), "SSIM": fmean(k.ssim for k in kept)}
    distances = [k.lpips for k in kept if k.lpips is not None]
    if len(distances) == len(kept):
        found["LPIPS"] = fmean(distances)
    before, after = (fmean(k.gradients[i] for k in kept) for i in (0, 1))
    if before:
        found["sharpness"] = after / before
    clips = [k.steps for k in kept if k.steps]
    for name, index in (("seam ratio", 1), ("seam ratio of the originals", 0)):
        within = fmean(steps[index].within for steps in clips) if clips else 0
        if within:
            found[name] = fmean(steps[index].across for steps in clips) / within
    return found
