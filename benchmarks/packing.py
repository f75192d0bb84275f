"""Packing: documents a second with their assignment to packs, and how full the packs are.

Lengths are simulated: images of about 512 x 512 pixels with captions, log-normal text, and clips of
3 to 30 latent frames. `bins_over_bound` is packs over Martello and Toth's L2 bound, text uncut.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
from harness import Case, main

from emu3_megatron.data.packing.packing import Packing, pack_pieces
from emu3_megatron.data.packing.pieces import Pieces

IMAGE, TEXT, CLIP = 0, 1, 2
# Shares of the documents: image, text, clip.
MIXES = {
    "5120 images": (5120, (1.0, 0.0, 0.0)),
    "5120 images and text, tokens 80:20": (5120, (0.43, 0.57, 0.0)),
    "5120 images and text, tokens 53:47": (5120, (0.18, 0.82, 0.0)),
    "131072 clips, images and text": (131_072, (0.3, 0.3, 0.4)),
    "131072 clips": (131_072, (0.0, 0.0, 1.0)),
}


def simulate(documents: int, context: int, shares: tuple[float, float, float]) -> Pieces:
    """Whole documents of a mix, none longer than the context."""
    rng = np.random.default_rng(0)
    kinds = rng.choice(3, documents, p=shares)
    caption = np.clip(rng.lognormal(4.4, 0.4, documents), 8, 900)
    text = np.clip(rng.lognormal(6.2, 1.0, documents), 16, context)
    frames = rng.integers(3, 31, documents)
    clip = 26 + frames * (64 * 65 + 1) + caption
    lengths = np.choose(kinds, [4171 + caption, text, clip]).astype(np.int64)
    return Pieces.whole(lengths, kinds == TEXT)


def figures(
    packing: Packing, seconds: float, *, documents: int, cut_text: bool
) -> dict[str, float | int]:
    return {
        "documents": documents,
        "documents_per_second": documents / seconds,
        "packs": len(packing),
        "fill": packing.fill,
        "cuts": len(packing.pieces) - documents,
        **({} if cut_text else {"bins_over_bound": len(packing) / packing.bound}),
    }


def cases(quick: bool) -> Iterator[Case]:
    for documents in (10**5,) if quick else (10**6, 10**7):
        for name, (context, shares) in MIXES.items():
            pieces = simulate(documents, context, shares)
            for cut_text in (False, True):
                yield Case(
                    f"{name}, {documents:.0e} documents" + (", text cut" if cut_text else ""),
                    "emu3",
                    partial(pack_pieces, pieces, context, cut_text=cut_text),
                    partial(figures, documents=documents, cut_text=cut_text),
                )


if __name__ == "__main__":
    main(cases, repeats=3)
