"""What Emu3's paper reports, with the conditions; to stand beside our own measures.

Emu3: Next-Token Prediction is All You Need, arXiv 2409.18869v1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_SAMPLING = "top-k 16384, top-p 1, guidance"
_NOTE = "as the paper gives them; it does not publish its evaluation code"


@dataclass(frozen=True)
class Row:
    """Measures of one model.

    Attributes:
        scores: by the names of the suite's own scorer.
    """

    model: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Published:
    """A table of the paper.

    Attributes:
        conditions: under which it was measured.
    """

    rows: Sequence[Row]
    conditions: str


_TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr", "overall")
_CATEGORIES = ("color", "shape", "texture")

PAPER: dict[str, Published] = {
    "geneval": Published(
        [
            Row("Emu3", dict(zip(_TAGS, (0.98, 0.71, 0.34, 0.81, 0.17, 0.21, 0.54), strict=True))),
            Row(
                "Emu3, prompts rewritten",
                dict(zip(_TAGS, (0.99, 0.81, 0.42, 0.80, 0.49, 0.45, 0.66), strict=True)),
            ),
            Row("Emu3-DPO", {"overall": 0.52}),
            Row("Emu3-DPO, prompts rewritten", {"overall": 0.64}),
        ],
        f"{_SAMPLING} 5.5, 512 x 512 pixels (Emu3-DPO 720 x 720); {_NOTE}",
    ),
    "t2i-compbench": Published(
        [
            Row("Emu3", dict(zip(_CATEGORIES, (0.6107, 0.4734, 0.6178), strict=True))),
            Row(
                "Emu3, prompts rewritten",
                dict(zip(_CATEGORIES, (0.7913, 0.5846, 0.7422), strict=True)),
            ),
            Row("Emu3-DPO", dict(zip(_CATEGORIES, (0.5514, 0.4641, 0.5476), strict=True))),
            Row(
                "Emu3-DPO, prompts rewritten",
                dict(zip(_CATEGORIES, (0.7544, 0.5706, 0.7164), strict=True)),
            ),
        ],
        f"{_SAMPLING} 5.0, 512 x 512 pixels (Emu3-DPO 720 x 720); {_NOTE}",
    ),
    "dpg-bench": Published(
        [Row("Emu3", {"overall": 80.60}), Row("Emu3-DPO", {"overall": 81.60})],
        f"{_SAMPLING} 5.0, 512 x 512 pixels (Emu3-DPO 720 x 720); {_NOTE}",
    ),
    "vbench": Published(
        [
            Row(
                "Emu3",
                {
                    "total": 80.96,
                    "motion smoothness": 98.93,
                    "dynamic degree": 79.27,
                    "aesthetic quality": 59.64,
                    "object class": 86.17,
                    "multiple objects": 44.64,
                    "human action": 77.71,
                    "spatial relationship": 68.73,
                    "scene": 37.11,
                    "appearance style": 20.92,
                    "subject consistency": 95.32,
                    "background consistency": 97.69,
                },
            )
        ],
        "clips of 5 s at 24 frames a second, after a learned stabiliser and 4x super-resolution "
        "(appendix B.2), which are not published and which we do not have; sampling not given",
    ),
    "fid": Published(
        [
            Row("Emu3", {"FID": 12.8, "CLIP-I": 0.689, "CLIP-T": 0.313}),
            Row("Emu3-DPO", {"FID": 19.3, "CLIP-I": 0.680, "CLIP-T": 0.312}),
        ],
        f"30,000 captions of MSCOCO; {_SAMPLING} 5.0, 512 x 512 pixels (Emu3-DPO 720 x 720); which "
        "weights and which resizing FID was taken with is not given",
    ),
    "reconstruction": Published(
        [
            Row("Emu3, 128 x 128", {"PSNR": 21.71, "SSIM": 0.630, "LPIPS": 0.099}),
            Row("Emu3, 256 x 256", {"PSNR": 21.59, "SSIM": 0.622, "LPIPS": 0.109}),
            Row("Emu3, 512 x 512", {"PSNR": 22.69, "SSIM": 0.690, "LPIPS": 0.112}),
            Row("Emu3, 720 x 720", {"PSNR": 24.30, "SSIM": 0.771, "LPIPS": 0.110}),
        ],
        "Emu3's vision tokenizer on 3,172 videos of Pexels, 5 s each, 8 frames at 12 frames a "
        "second; LPIPS with AlexNet",
    ),
}


def beside_paper(name: str, ours: Sequence[Row] = ()) -> list[str]:
    """Lines of a table: ours first, if there are any, then the paper's with its conditions.

    Args:
        ours: scores by the names of the suite's own scorer.
    """
    published = PAPER[name]
    columns = [*ours, *published.rows]
    names = list(dict.fromkeys(score for column in columns for score in column.scores))
    cells = [["", *(column.model for column in columns)]] + [
        [name, *(_shown(column.scores.get(name)) for column in columns)] for name in names
    ]
    return [*aligned(cells), f"Emu3's paper (arXiv 2409.18869): {published.conditions}"]


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(map(str.rjust, line, widths)) for line in cells]


def _shown(score: float | None) -> str:
    return "-" if score is None else f"{score:.4g}"
