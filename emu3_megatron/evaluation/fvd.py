"""Fréchet video distance between clips and what a tokenizer makes of them.

The network is a file of the user's, `i3d_torchscript.pt`, called as universome/stylegan-v
(src/metrics/frechet_video_distance.py) calls it: values of 0 to 255 in [b, c, t, h, w], scaled and
resized inside; it gives features with `return_features=True`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from emu3_megatron.errors import InputError

Features = tuple[Tensor, Tensor]
"""[n, d] of clips, and of what was made of them."""


class VideoFeatures:
    """Collects the features of clips. Raises InputError when the weights cannot be used."""

    def __init__(self, weights: Path, device: torch.device):
        if not weights.is_file():
            raise InputError(f"{weights}: no such file; emu3 downloads none")
        try:
            self._network = torch.jit.load(str(weights), map_location=device).eval()
        except (RuntimeError, ValueError):
            raise InputError(
                f"{weights}: no TorchScript network; give i3d_torchscript.pt"
            ) from None
        self._weights, self._device = weights, device
        self._pairs: list[Features] = []

    def add(self, given_tchw: Tensor, shown_tchw: Tensor) -> None:
        """Bytes of a clip, and of what was made of it."""
        self._pairs.append((self._of(given_tchw), self._of(shown_tchw)))

    @torch.inference_mode()
    def _of(self, bytes_tchw: Tensor) -> Tensor:
        values_1cthw = bytes_tchw.to(self._device).float().transpose(0, 1)[None]
        try:
            found = self._network(values_1cthw, rescale=True, resize=True, return_features=True)
        except (RuntimeError, torch.jit.Error):
            raise InputError(
                f"{self._weights}: takes no clip of {len(bytes_tchw)} frames; FVD's I3D network "
                "needs 10 or more, and is mostly given 16: --frames 16"
            ) from None
        return found.flatten(1).double().cpu()

    def collected(self) -> Features | None:
        """Of all clips; None where there were none."""
        if not self._pairs:
            return None
        given, shown = zip(*self._pairs, strict=True)
        return torch.cat(given), torch.cat(shown)


def video_distance(parts: Sequence[Features | None]) -> float | None:
    """The distance by the features that the processes collected; None for fewer than two clips."""
    found = [part for part in parts if part]
    if sum(len(given) for given, _ in found) < 2:
        return None
    given, shown = (torch.cat(side) for side in zip(*found, strict=True))
    return frechet(given, shown)


def frechet(one_nd: Tensor, other_nd: Tensor) -> float:
    """|m - m'|² + tr(C + C' - 2 (C C')^½) of the means and covariances of two sets."""
    (mean, covariance), (other_mean, other_covariance) = map(_moments, (one_nd, other_nd))
    roots = torch.linalg.eigvals(covariance @ other_covariance).sqrt().real.sum()
    spread = covariance.trace() + other_covariance.trace() - 2 * roots
    return ((mean - other_mean).square().sum() + spread).item()


def _moments(x_nd: Tensor) -> tuple[Tensor, Tensor]:
    mean_d = x_nd.double().mean(0)
    centred = x_nd.double() - mean_d
    return mean_d, centred.T @ centred / (len(x_nd) - 1)
