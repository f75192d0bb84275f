"""Text area by PP-OCR itself: a printed page, a photo of a cat, and a video of the page."""

import socket

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from emu3_megatron.config.prepare import ClipsConfig, ImagesConfig
from emu3_megatron.media.writers import write_clip
from emu3_megatron.prepare.clips import ScoreClips, decide_clips
from emu3_megatron.prepare.images import ScoreImages, ScoreTask, decide_images
from emu3_megatron.prepare.scores.ocr import TextArea, bounded
from emu3_megatron.prepare.tables import read_table


@pytest.fixture(scope="module")
def page():
    """A scanned page of a book, 384 x 191."""
    return Image.fromarray(data.page()).convert("RGB")


def test_a_page_is_text_and_a_cat_is_not(page):
    text_area = TextArea()

    assert 0.3 < text_area(np.asarray(page)) < 0.6
    assert text_area(data.chelsea()) == 0


def test_the_weights_need_no_network(page, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asks the network"))

    assert TextArea()(np.asarray(page)) == pytest.approx(0.42781, abs=0.02)


@pytest.mark.parametrize("size", [(1, 40), (600, 1), (30, 1200), (9000, 40)])
def test_a_narrow_picture_costs_no_more_than_others(size):
    width, height = size

    pixels_hwc, area = bounded(np.zeros((height, width, 3), np.uint8))

    short, long = sorted(pixels_hwc.shape[:2])
    assert long <= min(2000, 5 * short)
    assert (pixels_hwc == 0).all(-1).sum() == area


def test_text_on_a_narrow_picture_is_found(page):
    narrow = np.asarray(page)[20:90]  # 384 x 70

    assert TextArea()(narrow) > 0.3
    assert TextArea()(narrow[:5]) == 0  # lower than a letter


@pytest.mark.parametrize("size", [(64, 48), (120, 20)])
def test_what_is_too_small_or_narrow_is_not_read(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "a.png")
    scores = ScoreImages(ImagesConfig(source=tmp_path, min_side=64, max_aspect=5), "cpu")
    scores._text_area = lambda pixels: pytest.fail("was read")

    row = scores.score("a.png")

    assert row["text_area"] is None


def test_a_poor_photo_of_text_is_not_rescued(page, tmp_path):
    page.resize((768, 382)).save(tmp_path / "page.png")
    config = ImagesConfig(source=tmp_path, min_side=128, min_quality=10, rescue_colour=0)

    ScoreImages(config, "cpu")(ScoreTask(tmp_path / "scores.parquet", ["page.png"]))
    (row,) = read_table(tmp_path / "scores.parquet")
    decide_images([row], config)

    assert row["text_area"] > 0.3
    assert row["reason"].endswith(f"text on {row['text_area']:.0%}")


def test_a_clip_of_text_is_set_aside(page, tmp_path):
    pixels_chw = torch.from_numpy(np.asarray(page.resize((384, 192)), np.float32) / 127.5 - 1)
    write_clip(tmp_path / "page.mp4", pixels_chw.permute(2, 0, 1).expand(8, -1, -1, -1), fps=4)
    config = ClipsConfig(source=tmp_path, min_seconds=1, sample_fps=1)

    ScoreClips(config, "cpu")(ScoreTask(tmp_path / "scores.parquet", ["page.mp4"]))
    (row,) = read_table(tmp_path / "scores.parquet")
    decide_clips([row], config)

    assert row["reason"].startswith("too much text: ")
