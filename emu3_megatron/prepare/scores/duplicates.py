"""Exact and near duplicates by hash."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image

BITS = 64


def content_hash(data: bytes) -> str:
    """BLAKE2b of 16 bytes, in hexadecimal."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def difference_hash(image: Image.Image) -> int:
    """64 bits: is each of 8 x 8 patches brighter than the one to its right?

    Scaling, recompression and small changes of colour flip a few bits at most.
    """
    grey = image.convert("L").resize((9, 8), Image.Resampling.BOX)
    values = np.asarray(grey, np.int16)
    bits = (values[:, :-1] > values[:, 1:]).reshape(-1)
    return int(np.packbits(bits).view(">u8")[0])


def near_duplicates(hashes: Sequence[int], max_bits: int) -> list[int | None]:
    """For each hash, the first kept one before it that differs in at most `max_bits`, or None.

    A hash is kept when it has none: what is near a dropped one only stays. Hashes that differ in at
    most k bits agree on at least one of k + 1 bands, so only those are compared.
    """
    bands = np.array_split(np.arange(BITS), max_bits + 1)
    masks = [sum(1 << int(bit) for bit in band) for band in bands]
    seen: list[dict[int, list[int]]] = [defaultdict(list) for _ in masks]
    originals: list[int | None] = []
    for number, value in enumerate(hashes):
        keys = [value & mask for mask in masks]
        candidates = {i for table, key in zip(seen, keys, strict=True) for i in table.get(key, ())}
        near = [i for i in candidates if (value ^ hashes[i]).bit_count() <= max_bits]
        originals.append(min(near) if near else None)
        if not near:
            for table, key in zip(seen, keys, strict=True):
                table[key].append(number)
    return originals
