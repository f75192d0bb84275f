"""Packs of simulated documents, for benchmarks and tests of what attention does with them."""

from itertools import pairwise

import numpy as np
from packing import MIXES, simulate

from emu3_megatron.data.packing.packing import pack_pieces

CONTEXT = 131_072

# Shares of the documents: image, text, clip; and a clip's latent frames.
_DRAWN = {
    "image": ((1.0, 0.0, 0.0), (3, 4)),
    "mixed": ((0.5, 0.25, 0.25), (3, 14)),
    "video": ((0.0, 0.0, 1.0), (8, 28)),
    "text": ((0.0, 1.0, 0.0), (3, 4)),
}
KINDS = (*_DRAWN, "dense", "fitted")


def simulated_packs(kind: str, number: int = 8, context: int = CONTEXT) -> list[np.ndarray]:
    """Boundaries of packs: where their segments begin, and the end. The same at every call.

    Args:
        kind: `image`: photos of about 512 x 512 pixels; `text`: pages; `video`: clips; `mixed`:
            all three. Of these, documents are drawn until the pack is full and the last is cut.
            `fitted`: long clips, photos and text as our packer puts them together, with padding
            behind them. `dense`: one document.
    """
    rng = np.random.default_rng(0)
    if kind == "dense":
        return [np.array([0, context])] * number
    if kind == "fitted":
        return _fitted(number, context)
    return [_boundaries(_draw(kind, rng, context), context) for _ in range(number)]


def _draw(kind: str, rng: np.random.Generator, context: int) -> np.ndarray:
    """Lengths of documents, in tokens."""
    shares, frames = _DRAWN[kind]
    documents = 1 + context // 16  # none is shorter than 16
    caption = np.clip(rng.lognormal(4.4, 0.4, documents), 8, 900)
    text = np.maximum(16, rng.lognormal(6.2, 1.0, documents))
    clip = 26 + rng.integers(*frames, documents) * (64 * 65 + 1) + caption
    kinds = rng.choice(3, documents, p=shares)
    return np.choose(kinds, [4171 + caption, text, clip]).astype(np.int64)


def _fitted(number: int, context: int) -> list[np.ndarray]:
    shares = MIXES["131072 clips, images and text"][1]
    packing = pack_pieces(simulate(2_000, context, shares), context)
    offsets = packing.offsets[: number + 1]
    lengths = [packing.pieces.lengths[a:b] for a, b in pairwise(offsets)]
    return [_boundaries(np.append(documents, context), context) for documents in lengths]


def _boundaries(lengths: np.ndarray, context: int) -> np.ndarray:
    ends = np.minimum(np.cumsum(lengths), context)
    return np.unique(np.append(0, ends))
