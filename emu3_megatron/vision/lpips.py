"""LPIPS: the distance of two images in the features of VGG16 or AlexNet, weighted by heads.

Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (2018),
version 0.1. Nothing is downloaded: the user gives torchvision's weights and the `lpips` package's
heads as files.
"""

import hashlib
import itertools
import pickle
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from emu3_megatron.errors import InputError

# Of pixels in [-1, 1]; the same as ImageNet's mean and deviation of pixels in [0, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
# Under the square root: its gradient stays finite where all features are 0. The paper's code adds
# 1e-10 behind the root, where it does not help.
_EPSILON = 1e-10


@dataclass(frozen=True)
class _Layer:
    """A convolution and its ReLU.

    Attributes:
        index: of the convolution in torchvision's `features`.
        shape: of its weight: channels after and before, and its side twice.
        stride: of the convolution.
        pool: side of the max pooling before it, of stride 2; 0: none.
        compared: its features are compared.
    """

    index: int
    shape: tuple[int, int, int, int]
    stride: int = 1
    pool: int = 0
    compared: bool = False

    @property
    def padding(self) -> int:
        return 2 if self.shape[-1] > 3 else 1


@dataclass(frozen=True)
class _Network:
    layers: tuple[_Layer, ...]
    published: Mapping[str, str]  # sha256 of the weights and heads, by file name

    @property
    def heads(self) -> list[int]:
        """Channels of each head."""
        return [layer.shape[0] for layer in self.layers if layer.compared]


def _vgg16() -> Iterator[_Layer]:
    indices, before = itertools.count(), 3
    for level, (channels, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        if level:
            next(indices)  # of the pooling
        for i in range(depth):
            pool = 2 if level and i == 0 else 0
            index = next(indices)
            yield _Layer(index, (channels, before, 3, 3), 1, pool, compared=i == depth - 1)
            next(indices)  # of the ReLU
            before = channels


NETWORKS = {
    "vgg16": _Network(
        tuple(_vgg16()),
        {
            "vgg16-397923af.pth": (
                "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
            ),
            "vgg.pth": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        },
    ),
    "alexnet": _Network(
        (
            _Layer(0, (64, 3, 11, 11), 4, 0, compared=True),
            _Layer(3, (192, 64, 5, 5), 1, 3, compared=True),
            _Layer(6, (384, 192, 3, 3), 1, 3, compared=True),
            _Layer(8, (256, 384, 3, 3), 1, 0, compared=True),
            _Layer(10, (256, 256, 3, 3), 1, 0, compared=True),
        ),
        {
            "alexnet-owt-7be5be79.pth": (
                "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02"
            ),
            "alex.pth": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        },
    ),
}


class Lpips(nn.Module):
    """The distance of pairs of images.

    It is the same in train and eval mode, has no dropout and no parameter; its weights are in no
    state dict, so they are not saved with what it trains.

    Attributes:
        name: "lpips_vgg16" or "lpips_alexnet".
        hash: of the two files, 8 digits each.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: str, weights: Mapping[str, Tensor], hash: str):
        """`Lpips.load` reads and checks what this takes."""
        super().__init__()
        self.name = f"lpips_{network}"
        self.hash = hash
        self._layers = NETWORKS[network].layers
        for name, tensor in weights.items():
            self.register_buffer(_buffer(name), tensor.detach().clone(), persistent=False)
        for name, values in (("shift", _SHIFT), ("scale", _SCALE)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @classmethod
    def load(cls, weights: Path, heads: Path, accepted: Collection[str] = ()) -> Self:
        """Read the features' weights and the heads, in fp32, on the CPU.

        Args:
            weights: torchvision's state dict of VGG16 or AlexNet, `.pth` or `.safetensors`.
            heads: of the `lpips` package, version 0.1.
            accepted: sha256 of files that are not the published ones.

        Raises:
            InputError: a file cannot be read, is not what it should be, or has an unknown hash.
        """
        published = {digest for net in NETWORKS.values() for digest in net.published.values()}
        hashes = [_checked_hash(path, published | set(accepted)) for path in (weights, heads)]
        features = _read(weights)
        network = _recognised(features, weights)
        wanted = dict(_wanted_features(network)), dict(_wanted_heads(network))
        found = {**_chosen(features, wanted[0], weights), **_chosen(_read(heads), wanted[1], heads)}
        return cls(network, found, "+".join(digest[:8] for digest in hashes))

    def forward(self, one_nchw: Tensor, other_nchw: Tensor) -> Tensor:
        """The distances [n], in fp32, of images in [-1, 1], at least 32 pixels a side."""
        with torch.autocast(one_nchw.device.type, enabled=False):
            distance_n = one_nchw.new_zeros(len(one_nchw), dtype=self.scale.dtype)
            features = zip(self._features(one_nchw), self._features(other_nchw), strict=True)
            for index, (one, other) in enumerate(features):
                head = self.get_buffer(_buffer(_head(index)))
                squared = (normalised(one) - normalised(other)).square()
                distance_n = distance_n + F.conv2d(squared, head).flatten(1).mean(1)
            return distance_n

    def _features(self, x_nchw: Tensor) -> Iterator[Tensor]:
        x_nchw = (x_nchw.to(self.scale) - self.shift) / self.scale
        for layer in self._layers:
            if layer.pool:
                x_nchw = F.max_pool2d(x_nchw, layer.pool, 2)
            weight, bias = (self.get_buffer(_buffer(name)) for name in _parameters(layer))
            x_nchw = F.conv2d(x_nchw, weight, bias, layer.stride, layer.padding).relu()
            if layer.compared:
                yield x_nchw


def normalised(features_nchw: Tensor) -> Tensor:
    """The features of each place at length 1, or 0 where all are 0."""
    length_n1hw = (features_nchw.square().sum(1, keepdim=True) + _EPSILON).sqrt()
    return features_nchw / length_n1hw


def _buffer(name: str) -> str:
    return name.replace(".", "_")  # names of buffers have no dots


def _parameters(layer: _Layer) -> tuple[str, str]:
    return f"features.{layer.index}.weight", f"features.{layer.index}.bias"


def _head(index: int) -> str:
    return f"lin{index}.model.1.weight"


Shapes = Iterator[tuple[str, tuple[int, ...]]]


def _wanted_features(network: str) -> Shapes:
    for layer in NETWORKS[network].layers:
        weight, bias = _parameters(layer)
        yield weight, layer.shape
        yield bias, layer.shape[:1]


def _wanted_heads(network: str) -> Shapes:
    for index, channels in enumerate(NETWORKS[network].heads):
        yield _head(index), (1, channels, 1, 1)


def _checked_hash(path: Path, known: Collection[str]) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if digest not in known:
        names = ", ".join(name for network in NETWORKS.values() for name in network.published)
        raise InputError(
            f"{path}: sha256 {digest} is of none of {names}; if it is what you want, "
            "name that hash beside the file (in a recipe, perceptual.sha256)"
        )
    return digest


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, SafetensorError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: damaged or not a file of weights ({reason})") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: not a state dict")
    return found


def _recognised(features: Mapping[str, Tensor], path: Path) -> str:
    for network in NETWORKS:
        if all(_shape(features, name) == shape for name, shape in _wanted_features(network)):
            return network
    raise InputError(f"{path}: neither VGG16 nor AlexNet as torchvision saves them")


def _chosen(
    found: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], path: Path
) -> dict[str, Tensor]:
    for name, shape in wanted.items():
        if _shape(found, name) != shape:
            has = "no such tensor" if name not in found else f"{list(found[name].shape)}"
            raise InputError(f"{path}: {name}: {has}, where {list(shape)} is needed")
    return {name: found[name].float() for name in wanted}


def _shape(found: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(found[name].shape) if name in found else None
