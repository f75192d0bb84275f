"""What needs no training, to stand beside a tokenizer: mean colour, principal components, k-means.

Each works on the pixels of one code alone: 8x8 of an image, 4 frames of 8x8 of a clip.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from emu3_kernels.nearest_code import nearest_code
from torch import Tensor

from emu3_megatron.errors import InputError
from emu3_megatron.vision.clustering import move_to_means
from emu3_megatron.vision.files import At, Failed, Kind, batches
from emu3_megatron.vision.measures.reconstruction import Codec
from emu3_megatron.vision.tokenizer import SPATIAL_FACTOR, TEMPORAL_FACTOR

_MOST = 65_536  # patches of a kind that are fitted to, or twice the codes
_ROUNDS = 20  # of k-means
_FEW, _MANY = 4, 8  # principal components; 4 is the length of a code vector

Patches = Callable[[Tensor], Tensor]
"""Patches [n, d] to what is left of them [n, d]; d is 192 of images, 768 of clips."""


@dataclass(frozen=True)
class Baseline:
    """A way to rebuild patches, for each kind of file that it was fitted to."""

    name: str
    by_kind: dict[Kind, Patches]

    def codec(self) -> Codec:
        return Codec(lambda pixels: (self._rebuild(pixels), None))

    def _rebuild(self, pixels: Tensor) -> Tensor:
        patches_nd, shape = _to_patches(pixels)
        rebuilt = self.by_kind["clip" if pixels.dim() == 5 else "image"](patches_nd)
        return _to_pixels(rebuilt, shape).view(pixels.shape)


MEAN_COLOUR = "mean colour"


def mean_colour() -> Baseline:
    """Of the pixels of each code; needs no fitting."""
    return Baseline(MEAN_COLOUR, {"image": _mean_of_patches, "clip": _mean_of_patches})


def fit_baselines(paths: Sequence[Path], at: At, codes: int, seed: int) -> list[Baseline]:
    """Principal components and k-means of the patches of files, each kind by itself.

    Args:
        codes: of k-means, as many as the tokenizer has; where there are fewer different patches,
            each of them is a code.
        seed: which patches are drawn, and where k-means begins.

    Raises:
        InputError: no file can be read.
    """
    by_name: dict[str, dict[Kind, Patches]] = defaultdict(dict)
    for kind, patches_nd in _patches_of(paths, at, max(_MOST, 2 * codes), seed).items():
        mean_d, basis_cd = _principal_components(patches_nd)
        draw = torch.Generator().manual_seed(seed)
        few_nc = (patches_nd - mean_d) @ basis_cd[:_FEW].T
        few_book, book = (k_means(rows, codes, draw) for rows in (few_nc, patches_nd))
        fitted = {
            f"{_FEW} principal components": partial(_project, mean_d, basis_cd[:_FEW], None),
            f"{_MANY} principal components": partial(_project, mean_d, basis_cd, None),
            f"{_FEW} components, k-means": partial(_project, mean_d, basis_cd[:_FEW], few_book),
            "patches, k-means": partial(_nearest, book),
        }
        for name, rebuild in fitted.items():
            by_name[name][kind] = rebuild
    return [Baseline(name, by_kind) for name, by_kind in by_name.items()]


def k_means(rows_nc: Tensor, codes: int, draw: torch.Generator) -> Tensor:
    """Centres [codes, c], or all different rows where these are fewer."""
    different = rows_nc.unique(dim=0)
    if len(different) <= codes:
        return different
    book_kc = different[torch.randperm(len(different), generator=draw)[:codes]]
    for _ in range(_ROUNDS):
        codes_n = nearest_code(rows_nc, book_kc)
        unused_k = move_to_means(book_kc, codes_n, rows_nc) == 0
        if missing := int(unused_k.sum()):
            error_n = (rows_nc - book_kc[codes_n]).square().sum(1)
            book_kc[unused_k] = rows_nc[error_n.topk(missing).indices]
    return book_kc


def _patches_of(paths: Sequence[Path], at: At, most: int, seed: int) -> dict[Kind, Tensor]:
    """Of each kind up to `most` patches; what cannot be read is left out."""
    found: dict[Kind, list[Tensor]] = defaultdict(list)
    for batch in batches(paths, at, 1):
        if not isinstance(batch, Failed):
            found[batch.kind].append(_to_patches(batch.pixels)[0])
    if not found:
        raise InputError(
            f"--baseline-from: not one of {len(paths):,} files can be read, {paths[0]} among them"
        )
    draw = torch.Generator().manual_seed(seed)
    patches = {kind: torch.cat(parts) for kind, parts in found.items()}
    chosen = lambda rows: rows[torch.randperm(len(rows), generator=draw)[:most]]
    return {kind: chosen(patches[kind]) for kind in sorted(patches)}


def _principal_components(patches_nd: Tensor) -> tuple[Tensor, Tensor]:
    """The mean [d], and the directions [8, d] of greatest variance."""
    mean_d = patches_nd.double().mean(0)
    centred = patches_nd.double() - mean_d
    _, vectors_dd = torch.linalg.eigh(centred.T @ centred)
    return mean_d.float(), vectors_dd.T.flip(0)[:_MANY].float()


def _project(mean_d: Tensor, basis_cd: Tensor, book_kc: Tensor | None, patches: Tensor) -> Tensor:
    rows_nc = (patches - mean_d) @ basis_cd.T
    return (rows_nc if book_kc is None else _nearest(book_kc, rows_nc)) @ basis_cd + mean_d


def _nearest(book_kc: Tensor, rows_nc: Tensor) -> Tensor:
    return book_kc[nearest_code(rows_nc, book_kc)]


def _mean_of_patches(patches_nd: Tensor) -> Tensor:
    colours_nc1 = patches_nd.unflatten(1, (3, -1)).mean(2, keepdim=True)
    return colours_nc1.expand(-1, -1, patches_nd.shape[1] // 3).flatten(1)


def _to_patches(pixels: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Patches [n, d], channels first in each, and the shape they have side by side."""
    frames = TEMPORAL_FACTOR if pixels.dim() == 5 else 1
    btchw = pixels if pixels.dim() == 5 else pixels[:, None]
    split = btchw.unflatten(1, (-1, frames))  # b f t c h w
    split = split.unflatten(-1, (-1, SPATIAL_FACTOR)).unflatten(-3, (-1, SPATIAL_FACTOR))
    ordered = split.permute(0, 1, 4, 6, 3, 2, 5, 7)  # b f rows columns, c t y x
    return ordered.flatten(4).flatten(0, 3), tuple(ordered.shape)


def _to_pixels(patches_nd: Tensor, shape: tuple[int, ...]) -> Tensor:
    ordered = patches_nd.view(shape).permute(0, 1, 5, 4, 2, 6, 3, 7)
    return ordered.flatten(6).flatten(4, 5).flatten(1, 2)
