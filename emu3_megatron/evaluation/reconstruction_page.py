"""A page of what a tokenizer keeps: tables, and pictures that went in and came out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from emu3_megatron import pages
from emu3_megatron.evaluation.paper import PAPER
from emu3_megatron.evaluation.reconstruction import AtSize, in_words, ours, shown
from emu3_megatron.pages import Html

_AMPLIFIED = 4


@dataclass(frozen=True)
class Pair:
    """Bytes [t, 3, h, w] of a file, and of what was made of them."""

    path: Path
    given: Tensor
    rebuilt: Tensor


def page(
    where: str, said: str, sizes: Sequence[AtSize], codebook_size: int, pairs: Sequence[Pair]
) -> str:
    """The whole page.

    Args:
        where: tokenizer and files.
        said: the conditions.
        pairs: at a size of `sizes`; of some files.
    """
    blocks = [pages.code(where), pages.paragraph(said)]
    for size in sizes:
        blocks += _tables(size, codebook_size)
    blocks += [pages.heading("Beside the paper"), *_paper(sizes), pages.heading("Pictures")]
    fps = sizes[0].at.fps
    blocks += [block for pair in pairs for block in _pictures(pair, fps)]
    return pages.page("What a tokenizer keeps", blocks)


def _tables(size: AtSize, codebook_size: int) -> list[Html]:
    blocks = []
    for kind in size.kinds():
        heads, *rows = size.table(kind)
        blocks += [pages.heading(size.title(kind)), pages.table(heads, rows)]
        if usage := size.measured.usage(kind):
            blocks.append(pages.paragraph(in_words(usage, codebook_size)))
    failed = [[str(failed.path), failed.reason] for failed in size.measured.failed]
    return [
        *blocks,
        pages.paragraph(size.frechet()),
        pages.table(["left out", "why"], failed),
    ]


def _paper(sizes: Sequence[AtSize]) -> list[Html]:
    published = PAPER["reconstruction"]
    names = list(published.rows[0].scores)
    rows = [
        [row.model, *(shown(name, row.scores.get(name)) for name in names)]
        for row in [*ours(sizes), *published.rows]
    ]
    return [pages.table(["", *names], rows), pages.paragraph(published.conditions)]


def _pictures(pair: Pair, fps: float) -> list[Html]:
    difference = (pair.given.int() - pair.rebuilt.int()).abs().mul(_AMPLIFIED).clamp(max=255).byte()
    parts = {
        "went in": pair.given,
        "came out": pair.rebuilt,
        f"difference, {_AMPLIFIED} times": difference,
    }
    cards = [pages.card([_picture(frames, fps)], [name]) for name, frames in parts.items()]
    return [pages.heading(pair.path.name, level=3), pages.side_by_side(cards)]


def _picture(bytes_tchw: Tensor, fps: float) -> Html:
    images = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in bytes_tchw]
    return pages.animation(images, fps) if len(images) > 1 else pages.image(images[0])
