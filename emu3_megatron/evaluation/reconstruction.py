"""What a tokenizer keeps of a folder at several sizes, beside baselines and the paper's table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from emu3_megatron.evaluation.paper import PAPER, Row, aligned, beside_paper
from emu3_megatron.vision.files import At, Kind
from emu3_megatron.vision.measures.reconstruction import Measured, means
from emu3_megatron.vision.measures.usage import Usage

KINDS: tuple[Kind, Kind] = ("image", "clip")
NOT_COMPUTED = "not computed"
_TOKENIZER = "tokenizer"
_OF_ALL = ("PSNR", "SSIM", "LPIPS", "sharpness")
_OF_CLIPS = ("seam ratio", "seam ratio of the originals")


@dataclass(frozen=True)
class AtSize:
    """Everything that was measured at one size.

    Attributes:
        baselines: by name, what each was measured to keep.
        fid: of the images, fvd of the clips; None where they were not computed.
    """

    at: At
    measured: Measured
    baselines: Mapping[str, Measured] = field(default_factory=dict)
    fid: float | None = None
    fvd: float | None = None

    def kinds(self) -> list[Kind]:
        return [kind for kind in KINDS if self.measured.of_kind(kind)]

    def columns(self, kind: Kind) -> tuple[str, ...]:
        return _OF_ALL + (_OF_CLIPS if kind == "clip" else ())

    def rows(self, kind: Kind) -> list[Row]:
        """Means over the files of a kind: of the tokenizer, then of each baseline."""
        found = {_TOKENIZER: self.measured, **self.baselines}
        rows = [(name, measured.of_kind(kind)) for name, measured in found.items()]
        return [Row(name, means(kept)) for name, kept in rows if kept]

    def title(self, kind: Kind) -> str:
        return f"{self.at}, {_count(len(self.measured.of_kind(kind)), kind)}"

    def frechet(self) -> str:
        """FID and FVD in words."""
        values = {"FID of the images": self.fid, "FVD of the clips": self.fvd}
        return ", ".join(
            f"{name} {NOT_COMPUTED if value is None else f'{value:.4g}'}"
            for name, value in values.items()
        )

    def table(self, kind: Kind) -> list[list[str]]:
        """Cells, the heads first."""
        columns = self.columns(kind)
        cells = lambda row: [row.model, *(shown(name, row.scores.get(name)) for name in columns)]
        return [["", *columns], *map(cells, self.rows(kind))]

    def as_json(self) -> dict[str, Any]:
        kinds: dict[str, Any] = {}
        for kind in self.kinds():
            tokenizer, *baselines = self.rows(kind)
            usage = self.measured.usage(kind)
            kinds[kind] = {
                "files": len(self.measured.of_kind(kind)),
                **{name: tokenizer.scores.get(name) for name in self.columns(kind)},
                "usage": None if usage is None else vars(usage),
                "baselines": {row.model: dict(row.scores) for row in baselines},
            }
        failed = [{"file": str(f.path), "reason": f.reason} for f in self.measured.failed]
        return {"size": str(self.at), **kinds, "FID": self.fid, "FVD": self.fvd, "failed": failed}


def conditions(at: At, groups_alone: bool, images: int, clips: int) -> str:
    """How the figures were made, in words."""
    frames = "all frames" if at.frames is None else f"the first {at.frames} frames"
    how = "every 4 by themselves" if groups_alone else "encoded as one clip"
    parts = [
        f"{_count(images, 'image')} and {_count(clips, 'clip')}",
        "the middle square" if at.is_square else "aspect kept",
        f"of a clip {frames} at {at.fps:g} a second, {how}",
        "compared at 8 bits; means over frames, then over files",
    ]
    return "; ".join(parts)


def in_words(usage: Usage, codebook_size: int) -> str:
    return (
        f"{usage.used:,} of {codebook_size:,} codes used ({usage.share:.1%}), "
        f"perplexity {usage.perplexity:,.1f}, over {usage.tokens:,} tokens"
    )


def report(sizes: Sequence[AtSize], codebook_size: int, said: str) -> list[str]:
    """Lines of text: a table a size and kind, then the paper's table beside ours."""
    lines = []
    for size in sizes:
        for kind in size.kinds():
            lines += [size.title(kind), *aligned(size.table(kind))]
            if usage := size.measured.usage(kind):
                lines.append(in_words(usage, codebook_size))
        lines += [size.frechet(), ""]
    return [*lines, *beside_paper("reconstruction", ours(sizes)), f"ours: {said}"]


def ours(sizes: Sequence[AtSize]) -> list[Row]:
    """Columns for the paper's table: of clips, as its own are; where there are none, of images."""
    columns = []
    for size in sizes:
        for kind in size.kinds()[-1:]:
            scores = {name: size.rows(kind)[0].scores.get(name) for name in _OF_ALL[:3]}
            known = {name: value for name, value in scores.items() if value is not None}
            columns.append(Row(f"ours, {kind}s at {size.at}", known))
    return columns


def paper_as_json() -> dict[str, Any]:
    published = PAPER["reconstruction"]
    return {
        "conditions": published.conditions,
        "sizes": {row.model: dict(row.scores) for row in published.rows},
    }


def shown(name: str, value: float | None) -> str:
    """A figure with the digits that mean something."""
    if value is None:
        return NOT_COMPUTED if name == "LPIPS" else "-"
    return f"{value:.2f}" if name == "PSNR" else f"{value:.3f}"


def _count(number: int, kind: str) -> str:
    return f"{number:,} {kind}{'' if number == 1 else 's'}"
