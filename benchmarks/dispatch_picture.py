"""Draws docs/images/dispatch.png: which rank computes which part of attention, in three packs."""

from pathlib import Path

import numpy as np
from balance import Balance
from PIL import Image, ImageDraw, ImageFont
from simulated_packs import simulated_packs

from emu3_megatron.context_parallel.dispatch import dispatch

RANKS, SIDE, GAP, TOP = 8, 512, 72, 150
PALETTE = ["4477aa", "ee6677", "228833", "ccbb44", "66ccee", "aa3377", "ee9944", "777777"]
COLOURS = np.array([[int(name[i : i + 2], 16) for i in (0, 2, 4)] for name in PALETTE], np.uint8)
TITLES = {"image": "31 photos", "mixed": "photos, text and clips", "video": "clips"}
NOTE = (
    "A row is a query, a column a key; the colour is the rank that computes it (context parallel 8)"
)


def triangle(boundaries: np.ndarray, order_cs: np.ndarray) -> Image.Image:
    """The attention matrix of a pack, each visible pair in the colour of its query's rank."""
    rank_s = np.empty(boundaries[-1], np.int64)
    for rank, mine in enumerate(order_cs):
        rank_s[mine] = rank
    sampled = np.arange(2 * SIDE) * boundaries[-1] // (2 * SIDE)
    document = np.searchsorted(boundaries, sampled, side="right")
    visible = np.tril(document[:, None] == document[None, :])
    rows = np.broadcast_to(COLOURS[rank_s[sampled]][:, None], (*visible.shape, 3))
    pixels = np.where(visible[:, :, None], rows, np.uint8(244))
    return Image.fromarray(pixels.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def main() -> None:
    picture = Image.new("RGB", (3 * SIDE + 4 * GAP, TOP + SIDE + 150), "white")
    draw = ImageDraw.Draw(picture)
    large, small = ImageFont.load_default(26), ImageFont.load_default(21)
    draw.text((GAP, 28), NOTE, "#222222", large)
    for column, (kind, title) in enumerate(TITLES.items()):
        left = GAP + column * (SIDE + GAP)
        boundaries = simulated_packs(kind, 1)[0]
        order_cs = dispatch(boundaries, RANKS)
        balance = Balance.of(boundaries, order_cs)
        picture.paste(triangle(boundaries, order_cs), (left, TOP))
        draw.text((left, TOP - 44), f"{kind}: {title}", "#222222", large)
        figures = (
            f"busiest rank {balance.work_max_over_mean:.3f} x mean work",
            f"neediest rank receives {balance.exchange_fraction:.0%} of a full ring",
        )
        draw.text((left, TOP + SIDE + 14), "\n".join(figures), "#222222", small, spacing=8)
    for rank, colour in enumerate(COLOURS):
        left, top = GAP + 150 * rank, TOP + SIDE + 100
        draw.rectangle((left, top, left + 26, top + 26), tuple(colour.tolist()))
        draw.text((left + 38, top), f"rank {rank}", "#222222", small)
    picture.save(Path(__file__).parent.parent / "docs" / "images" / "dispatch.png")


if __name__ == "__main__":
    main()
