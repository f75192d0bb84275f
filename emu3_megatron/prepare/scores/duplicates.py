"""Exact duplicates by a hash of the file, near duplicates by a signature of shape and colour."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from emu3_megatron.prepare.items import with_progress

BITS = 64
_BLOCK = 1 << 20  # bytes of a file that are read at once
CELLS = 8  # a side of the grid of colours
# Shares of a picture's sides that are left out: left, top, right, bottom. A copy that was cropped
# by up to 5% of its sides looks, as a whole, like one of these parts of the original.
_FIFTHS = (0.0, 0.025, 0.05)
PARTS = (
    (0.0, 0.0, 0.0, 0.0),
    *((left, top, 0.05 - left, 0.05 - top) for left in _FIFTHS for top in _FIFTHS),
    (0.05, 0.0, 0.0, 0.0),
    (0.0, 0.05, 0.0, 0.0),
    (0.0, 0.0, 0.05, 0.0),
    (0.0, 0.0, 0.0, 0.05),
    (0.05, 0.05, 0.05, 0.05),
)
SIGNATURE = np.dtype([("hashes", ">u8", len(PARTS)), ("colours", "u1", (len(PARTS), CELLS**2, 3))])
# How those begin and end between left and right, and between top and bottom.
_SIDES = [sorted({(part[axis], part[axis + 2]) for part in PARTS}) for axis in range(2)]
_WAYS = [[sides.index((p[axis], p[axis + 2])) for p in PARTS] for axis, sides in enumerate(_SIDES)]
SIGNED = "looks/2"  # changes where signatures do
NO_PAIRS = np.empty((0, 2), np.int64)
_LARGEST = 256  # pixels of a side that a signature is made of; larger pictures are reduced before
_FLAT = 3  # of 255: neighbours that differ less are flat, so that noise decides no bit
# Distances in OKLab, lightness from 0 to 100. Measured on Tux Paint's stamps; see docs/data.md.
_COLOUR = 4.0  # root mean square over the grid
_CONTRAST = 0.18  # and this share of the picture's own contrast
_ROUNDING = 0.5
_PAIRS = 1 << 20  # compared at once

_LUMA = np.array([0.299, 0.587, 0.114])
_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_ONES = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)


def content_hash(blocks: Iterable[bytes]) -> str:
    """BLAKE2b of 16 bytes of a file's content, in hexadecimal."""
    found = hashlib.blake2b(digest_size=16)
    for block in blocks:
        found.update(block)
    return found.hexdigest()


def file_hash(path: Path) -> str:
    """The same of a file of any size, in little memory."""
    with path.open("rb") as file:
        return content_hash(with_progress(iter(partial(file.read, _BLOCK), b"")))


def signature(image: Image.Image) -> bytes:
    """What a picture looks like, as a `SIGNATURE`: of each part of it 64 bits, and its colours.

    A bit says whether one of 8 x 8 patches is brighter than the one to its right. Colours are means
    of 8 x 8 cells in OKLab, of 8 bits. Scaling and recompression change both a little at most.
    """
    pixels_h3w = np.asarray(reduced(image), np.float32).transpose(0, 2, 1).copy()
    grey_phw = _means(pixels_h3w, CELLS + 1, CELLS) @ _LUMA
    found = np.zeros(1, SIGNATURE)
    bits = (grey_phw[..., :-1] > grey_phw[..., 1:] + _FLAT).reshape(len(PARTS), BITS)
    found["hashes"][0] = np.packbits(bits, 1).view(">u8")[:, 0]
    found["colours"][0] = _oklab(_means(pixels_h3w, CELLS, CELLS)).reshape(len(PARTS), -1, 3)
    return found.tobytes()


def reduced(image: Image.Image) -> Image.Image:
    """What a signature is made of: RGB, at most 256 pixels a side, its aspect not kept."""
    image = image.convert("RGB")
    if max(image.size) <= _LARGEST:
        return image
    size = (min(image.width, _LARGEST), min(image.height, _LARGEST))
    return image.resize(size, Image.Resampling.BOX)


def signatures(values: Sequence[bytes]) -> np.ndarray:
    """Signatures as an array of `SIGNATURE`."""
    return np.frombuffer(b"".join(values), SIGNATURE)


def _means(pixels_h3w: np.ndarray, columns: int, rows: int) -> np.ndarray:
    """Means over the cells of a grid over each part of a picture, [part, rows, columns, 3]."""
    height, _, width = pixels_h3w.shape
    across, down = _shares(width, columns, 0), _shares(height, rows, 1)
    # One product for all ways in which parts begin and end between left and right.
    sums = pixels_h3w.reshape(-1, width) @ across.reshape(-1, width).T
    sums_wh3c = sums.reshape(height, 3, -1, columns).transpose(2, 0, 1, 3)
    sums_ph_3c = sums_wh3c[_WAYS[0]].reshape(len(PARTS), height, -1)
    means_pr3c = (down[_WAYS[1]] @ sums_ph_3c).reshape(len(PARTS), rows, 3, columns)
    return means_pr3c.transpose(0, 1, 3, 2)


@lru_cache(64)
def _shares(size: int, cells: int, axis: int) -> np.ndarray:
    """Weights [ways, cells, size] of pixels in the mean over a cell, whose edges may cut them."""
    pixels = np.arange(size)
    ways = []
    for begin, end in _SIDES[axis]:
        edges = np.linspace(begin * size, (1 - end) * size, cells + 1)
        inside = np.clip(edges[1:, None] - pixels, 0, 1) - np.clip(edges[:-1, None] - pixels, 0, 1)
        ways.append(inside / (edges[1] - edges[0]))
    return np.stack(ways).astype(np.float32)


def _oklab(srgb: np.ndarray) -> np.ndarray:
    """Half units of lightness and of both colour axes, the axes from 128."""
    values = np.clip(srgb / 255, 0, 1)
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    lab = np.cbrt(linear @ _TO_LMS.T) @ _TO_LAB.T
    return np.clip(np.rint(200 * lab + (0, 128, 128)), 0, 255).astype(np.uint8)


def near_pairs(found: np.ndarray, max_bits: int) -> np.ndarray:
    """Pairs [n, 2] of indices of signatures that look alike, the lesser first.

    They do when the whole of one and a part of the other differ in at most `max_bits` bits, and
    hardly in colour. Hashes that differ in at most k bits agree on one of k + 1 bands, so only
    those are compared.
    """
    if len(found) < 2:
        return NO_PAIRS
    looks, which = np.unique(found.view(f"V{SIGNATURE.itemsize}"), return_inverse=True)
    looks, which = looks.view(SIGNATURE), which.reshape(-1)
    pairs = [_same_looks(which)]
    first_of = np.unique(which, return_index=True)[1]
    for wholes, parts, numbers in _alike_in_bits(looks["hashes"], max_bits):
        alike = _alike_in_colour(looks["colours"], wholes, parts, numbers)
        two = np.stack([first_of[wholes[alike]], first_of[parts[alike]]], axis=1)
        pairs.append(np.unique(np.sort(two, axis=1), axis=0))
    return np.unique(np.concatenate(pairs), axis=0)


def _same_looks(which: np.ndarray) -> np.ndarray:
    """Of signatures that are equal, each with the first."""
    first_of = np.unique(which, return_index=True)[1][which]
    numbers = np.arange(len(which))
    others = first_of != numbers
    return np.stack([first_of[others], numbers[others]], axis=1)


def _alike_in_bits(
    hashes: np.ndarray, max_bits: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of pictures: wholes, those whose part is like them, and which part it is."""
    wholes, every = hashes[:, 0].astype(np.uint64), hashes.astype(np.uint64).reshape(-1)
    for band in np.array_split(np.arange(BITS), max_bits + 1):
        mask = np.uint64(sum(1 << int(bit) for bit in band))
        order = np.argsort(wholes & mask, kind="stable")
        keys = (wholes & mask)[order]
        lows = np.searchsorted(keys, every & mask, "left")
        counts = np.searchsorted(keys, every & mask, "right") - lows
        for first, end in _stretches(counts):
            inside = counts[first:end]
            asked = np.repeat(np.arange(first, end), inside)
            step = np.arange(len(asked)) - np.repeat(np.cumsum(inside) - inside, inside)
            whole = order[lows[asked] + step]
            near = _bits(wholes[whole] ^ every[asked]) <= max_bits
            near &= whole != asked // len(PARTS)
            yield whole[near], asked[near] // len(PARTS), asked[near] % len(PARTS)


def _stretches(counts: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges over counts, of at most `_PAIRS` together, or of one."""
    sums = np.concatenate([[0], np.cumsum(counts)])
    first = 0
    while first < len(counts):
        end = max(first + 1, int(np.searchsorted(sums, sums[first] + _PAIRS, "right")) - 1)
        yield first, end
        first = end


def _bits(values: np.ndarray) -> np.ndarray:
    """How many bits of each value are set."""
    return _ONES[values.view(np.uint16).reshape(-1, 4)].sum(1)


def _alike_in_colour(
    colours: np.ndarray, wholes: np.ndarray, parts: np.ndarray, numbers: np.ndarray
) -> np.ndarray:
    """Does each whole have the colours of that part, as far as the contrast of both lets tell?"""
    alike = np.zeros(len(wholes), bool)
    for first in range(0, len(wholes), _PAIRS // 64):
        some = slice(first, first + _PAIRS // 64)
        one = colours[wholes[some], 0].astype(np.float32) / 2
        other = colours[parts[some], numbers[some]].astype(np.float32) / 2
        most = np.maximum(_spread(one), _spread(other)) * _CONTRAST + _ROUNDING
        alike[some] = _rms(one - other) <= np.minimum(_COLOUR, most)
    return alike


def _spread(values: np.ndarray) -> np.ndarray:
    return _rms(values - values.mean(1, keepdims=True))


def _rms(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(values).sum(2).mean(1))


def contrast(found: np.ndarray) -> np.ndarray:
    """How far the colours of each picture lie from their mean."""
    return _spread(found["colours"][:, 0].astype(np.float32) / 2)
