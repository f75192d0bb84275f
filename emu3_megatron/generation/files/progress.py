"""Shows how far rows of codes have come, and writes previews of images while they grow."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from emu3_megatron.grammar import Meta
from emu3_megatron.media.images import to_image
from emu3_megatron.media.writers import write_png
from emu3_megatron.vision.tokenizer import SPATIAL_FACTOR, VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary

_SHARE = 0.1  # of the time that previews may take
_EMPTY = (128, 128, 128)  # colour of what is not drawn yet


class RowProgress:
    """A bar over rows of codes: rate and time left. Give it to `draw` as `watch`.

    Args:
        grids: of what is drawn, in the order of the requests, each with how many latent frames of
            it are given.
        quiet: show no bar.
    """

    def __init__(self, grids: Sequence[tuple[Meta, int]], quiet: bool = False):
        self._metas = [meta for meta, _ in grids]
        total = sum((meta.frames - given) * meta.height for meta, given in grids)
        self._bar = tqdm(total=total, unit="row", leave=None, disable=quiet, file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def __call__(self, said: Sequence[Sequence[int]]) -> None:
        rows = sum(rows_in(meta, len(s)) for meta, s in zip(self._metas, said, strict=True))
        self._bar.update(rows - self._bar.n)


def rows_in(meta: Meta, tokens: int) -> int:
    """Finished rows among so many tokens behind IMG, or behind whole frames."""
    frame = meta.height * (meta.width + 1) + 1
    frames, rest = divmod(tokens, frame)
    return frames * meta.height + rest // (meta.width + 1)


class Previews:
    """Writes the finished rows of images while they grow, each file whole at any time.

    It takes about a tenth of the time. `remove` removes the files when the images are there.

    Args:
        paths: of the previews, .png.
    """

    def __init__(
        self,
        tokenizer: VisionTokenizer,
        vocabulary: Vocabulary,
        metas: Sequence[Meta],
        paths: Sequence[Path],
    ):
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._metas, self._paths = metas, paths
        self._written = [0] * len(metas)
        self._not_before = 0.0

    def __call__(self, said: Sequence[Sequence[int]]) -> None:
        if time.monotonic() < self._not_before:
            return
        begun = time.monotonic()
        for i, (meta, tokens) in enumerate(zip(self._metas, said, strict=True)):
            rows = min(rows_in(meta, len(tokens)), meta.height)
            if rows > self._written[i]:
                image = image_of_rows(self._tokenizer, self._vocabulary, meta, tokens, rows)
                write_png(self._paths[i], image)
                self._written[i] = rows
        took = time.monotonic() - begun
        self._not_before = time.monotonic() + took * (1 - _SHARE) / _SHARE

    def remove(self) -> None:
        for path in self._paths:
            path.unlink(missing_ok=True)


def image_of_rows(
    tokenizer: VisionTokenizer,
    vocabulary: Vocabulary,
    meta: Meta,
    tokens: Sequence[int],
    rows: int,
) -> Image.Image:
    """The image with its first rows; the rest is grey.

    Args:
        tokens: those behind IMG.
    """
    laid_out = np.array(tokens[: rows * (meta.width + 1)]).reshape(rows, -1)
    codes_hw = torch.from_numpy(laid_out[:, :-1] - vocabulary.first_code)
    device = next(tokenizer.parameters()).device
    drawn = to_image(tokenizer.decode_images(codes_hw[None].to(device))[0])
    size = (SPATIAL_FACTOR * meta.width, SPATIAL_FACTOR * meta.height)
    image = Image.new("RGB", size, _EMPTY)
    image.paste(drawn)
    return image
