"""Frames look as players show them: pixels, fields, colours, streams, sizes and times."""

import gc
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image
from support.media import write_video

from emu3_megatron.errors import InputError
from emu3_megatron.media.colour import HLG, PQ, to_srgb
from emu3_megatron.media.videos import of_one_size, read_clip, read_frames, read_info
from emu3_megatron.prepare.shots import find_shots

BT2020 = 9
BARE = {"time_base": Fraction(1, 8)}  # by which a bare stream says its rate


def colours(count=8, size=(64, 48)):
    return [Image.new("RGB", size, (30 + 20 * i, 200, 40)) for i in range(count)]


def textured(size=(64, 48)):
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


# Pixels


@pytest.mark.parametrize(
    ("stored", "aspect", "size"),
    [
        ((360, 288), Fraction(64, 45), (512, 288)),  # PAL, widescreen
        ((72, 48), Fraction(8, 9), (72, 54)),  # NTSC: nothing is thrown away
        ((64, 48), Fraction(1), (64, 48)),
    ],
)
def test_pixels_become_square(tmp_path, stored, aspect, size):
    images = [Image.new("RGB", stored, "red")] * 2
    path = write_video(tmp_path / "a.mp4", images, sample_aspect_ratio=aspect)

    frame = next(read_frames(path))

    assert (frame.size, frame.image().size) == (size, size)
    assert frame.notes == (["square pixels"] if aspect != 1 else [])


def test_pixels_become_square_before_the_picture_is_turned(tmp_path):
    images = colours(2)
    path = write_video(tmp_path / "a.mp4", images, rotation=90, sample_aspect_ratio=Fraction(2))

    frame = next(read_frames(path))

    assert (frame.size, frame.image().size) == ((48, 128), (48, 128))


def test_absurd_pixels_are_refused(tmp_path):
    path = write_video(tmp_path / "a.mp4", colours(2), sample_aspect_ratio=Fraction(9))

    with pytest.raises(InputError, match=r"a\.mp4: has pixels of 9:1"):
        list(read_frames(path))


def test_an_interlaced_frame_shows_one_moment(tmp_path):
    lines = np.zeros((48, 64, 3), np.uint8)
    lines[::2] = 255  # white in one field and black in the next
    options = {"flags": "+ildct+ilme", "x264-params": "tff=1", "qp": "1"}
    path = write_video(tmp_path / "a.mp4", [Image.fromarray(lines)] * 2, options=options)

    frame = next(read_frames(path))

    assert np.ptp(np.asarray(frame.image())) < 16
    assert (frame.image().size, frame.notes) == ((64, 48), ["deinterlaced"])


@pytest.mark.parametrize(("transfer", "note"), [(PQ, "pq"), (HLG, "hlg"), (14, "wide gamut")])
def test_hdr_and_wide_gamuts_become_srgb(tmp_path, transfer, note):
    stored = (120, 100, 80)
    path = write_video(
        tmp_path / "a.mp4",
        [Image.new("RGB", (64, 64), stored)] * 2,
        pix_fmt="yuv420p10le",
        color_trc=transfer,
        color_primaries=BT2020,
    )

    frame = next(read_frames(path))

    expected = to_srgb(np.array([[stored]], np.uint8), BT2020, transfer)[0, 0]
    np.testing.assert_allclose(np.asarray(frame.image(), int)[9, 9], expected, atol=4)
    assert frame.notes == [note]


# Streams


def two_streams(path, first, second, dispositions=(0, 0)):
    """A container of two streams, a picture each, of as many frames as it says."""
    with av.open(str(path), "w") as container:
        streams = []
        for (image, _), disposition in zip((first, second), dispositions, strict=True):
            stream = container.add_stream("mjpeg", rate=8)
            stream.width, stream.height = image.size
            stream.pix_fmt = "yuvj420p"
            stream.disposition = disposition
            streams.append(stream)
        for stream, (image, count) in zip(streams, (first, second), strict=True):
            for number in range(count):
                frame = av.VideoFrame.from_image(image)
                frame.pts, frame.time_base = number, Fraction(1, 8)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


FILM = (Image.new("RGB", (64, 48), "red"), 8)
COVER = (Image.new("RGB", (160, 160), "blue"), 1)
PREVIEW = (Image.new("RGB", (32, 24), "blue"), 8)


@pytest.mark.parametrize(
    ("first", "dispositions"),
    [
        (COVER, (Disposition.attached_pic, Disposition.default)),
        (COVER, (0, 0)),
        (PREVIEW, (Disposition.default, 0)),
    ],
)
def test_the_film_is_read_and_not_its_cover_or_preview(tmp_path, first, dispositions):
    path = two_streams(tmp_path / "a.mov", first, FILM, dispositions)

    assert [frame.size for frame in read_frames(path)] == [(64, 48)] * 8
    assert read_info(path).seconds == 1


# Sizes


def joined(path, sizes, count=8):
    """One stream whose size changes, `count` frames each."""
    parts = []
    for number, size in enumerate(sizes):
        part = path.with_suffix(f".{number}")
        write_video(part, [textured(size)] * count, kind="h264", **BARE)
        parts.append(part.read_bytes())
        part.unlink()
    path.write_bytes(b"".join(parts))
    return path


def test_a_new_size_begins_a_shot_and_no_frame_is_lost(tmp_path):
    path = joined(tmp_path / "a.mp4", [(64, 48), (48, 64), (96, 72)])

    shots = find_shots(path, content_threshold=255, fade_threshold=0, min_shot_frames=8)

    assert shots.ranges == [(0, 8), (8, 16), (16, 24)]


def test_one_clip_has_one_size(tmp_path):
    path = joined(tmp_path / "a.mp4", [(64, 48), (48, 64)])

    with pytest.raises(InputError, match=r"from 64x48 to 48x64 at 1\.000 seconds; cut it there"):
        read_clip(path, area=1536, fps=8)
    assert len(read_clip(path, area=1536, fps=8, num_frames=7)) == 7
    assert len(list(of_one_size(list(read_frames(path))[8:]))) == 8


# Times


@pytest.mark.parametrize(("suffix", "kind"), [("mp4", "h264"), ("avi", "avi")])
def test_frames_without_times_keep_the_rate(tmp_path, suffix, kind):
    """A bare stream has none; in AVI those of reordered frames are not when they are shown."""
    path = write_video(tmp_path / f"a.{suffix}", colours(), kind=kind, **BARE)

    frames = list(read_frames(path))

    assert [frame.time for frame in frames] == pytest.approx(np.arange(8) / 8)
    reds = [frame.image().getpixel((9, 9))[0] for frame in frames]
    assert reds == sorted(reds)
    assert next(read_frames(path, start=0.5)).time <= 0.5


@pytest.mark.parametrize(("kind", "settings"), [("h264", {}), ("matroska", {"live": "1"})])
def test_a_duration_that_is_not_stated_is_counted(tmp_path, kind, settings):
    path = write_video(tmp_path / "a.mkv", colours(16), kind=kind, settings=settings, **BARE)

    assert read_info(path).seconds == pytest.approx(2, abs=0.01)


def test_frames_leave_memory_at_once(tmp_path):
    """Python looks for circles of references seldom, and a frame of 4K takes 12 MB."""
    path = write_video(tmp_path / "a.mp4", colours(), rotation=90)
    gc.collect()
    gc.disable()
    try:
        sizes = {(frame.size, frame.image().size) for frame in read_frames(path)}
        left = sum(isinstance(one, av.VideoFrame) for one in gc.get_objects())
    finally:
        gc.enable()

    assert sizes == {((48, 64), (48, 64))}
    assert left == 0
