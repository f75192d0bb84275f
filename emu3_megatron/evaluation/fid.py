"""Fréchet inception distance of two folders of images, by torchmetrics.

The network is a file of the user's: nothing is downloaded. It is called as
NVlabs/stylegan2-ada-pytorch @ 375a436 (metrics/metric_utils.py) calls its translation of the
Inception network that the distance was defined with, `inception-2015-12-05.pt`: images of bytes in,
resized inside, and with `return_features=True` 2,048 features out.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from emu3_megatron.errors import InputError
from emu3_megatron.media.files import IMAGE_SUFFIXES, find_files
from emu3_megatron.media.images import load_image, to_pixels

_AT_ONCE = 32


class _Features(nn.Module):
    """The network as torchmetrics calls it."""

    def __init__(self, network: torch.jit.ScriptModule, device: torch.device):
        super().__init__()
        self.network = network.to(device)
        trial = torch.zeros((1, 3, 299, 299), dtype=torch.uint8, device=device)
        self.num_features = self(trial).shape[-1]

    def forward(self, bytes_bchw: Tensor) -> Tensor:
        return self.network(bytes_bchw, return_features=True)


def frechet_distance(real: Path, drawn: Path, weights: Path, device: torch.device) -> float:
    """The distance between the images of two folders; 0 where they are alike.

    Args:
        weights: TorchScript file of the network.

    Raises:
        InputError: torchmetrics is not installed, the weights cannot be used, or a folder holds
            fewer than two images.
    """
    metric = open_metric(weights, device)
    for folder, is_real in ((real, True), (drawn, False)):
        _add(metric, folder, is_real, device)
    return metric.compute().item()


def open_metric(weights: Path, device: torch.device) -> Any:
    """torchmetrics' FrechetInceptionDistance; its sums go over all processes by themselves.

    Raises:
        InputError: torchmetrics is not installed, or the weights cannot be used.
    """
    features = _load(weights, device)
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ModuleNotFoundError:
        raise InputError("FID needs torchmetrics: pip install 'emu3-megatron[evaluate]'") from None
    return FrechetInceptionDistance(feature=features).to(device)


def count_images(folder: Path) -> int:
    return len(find_files(folder, IMAGE_SUFFIXES))


def _load(weights: Path, device: torch.device) -> _Features:
    if not weights.is_file():
        raise InputError(f"{weights}: no such file; emu3 downloads none")
    try:
        return _Features(torch.jit.load(str(weights), map_location=device).eval(), device)
    except (RuntimeError, ValueError):
        raise InputError(
            f"{weights}: no TorchScript network that gives features of images; give "
            "inception-2015-12-05.pt"
        ) from None


@torch.inference_mode()
def _add(metric: Any, folder: Path, is_real: bool, device: torch.device) -> None:
    paths = find_files(folder, IMAGE_SUFFIXES)
    if len(paths) < 2:
        raise InputError(f"{folder}: one image; a distribution needs more")
    with tqdm(total=len(paths), desc=str(folder), unit="image") as bar:
        for images in _batches(paths):
            metric.update(torch.stack(images).to(device), real=is_real)
            bar.update(len(images))


def _batches(paths: list[Path]) -> Iterator[list[Tensor]]:
    """Images of one size, as bytes."""
    images = (_bytes(path) for path in paths)
    for _, same in groupby(images, key=lambda image: image.shape):
        batch: list[Tensor] = []
        for image in same:
            batch.append(image)
            if len(batch) == _AT_ONCE:
                yield batch
                batch = []
        if batch:
            yield batch


def _bytes(path: Path) -> Tensor:
    return ((to_pixels(load_image(path)) + 1) * 127.5).round().to(torch.uint8)
