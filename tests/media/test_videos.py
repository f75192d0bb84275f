"""Videos are read frame by frame, upright and on time, and as clips at an even rate."""

import av
import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from support.media import write_video

from emu3_megatron.errors import InputError
from emu3_megatron.media.videos import (
    Frame,
    frames_at_rate,
    is_variable,
    mean_rate,
    read_clip,
    read_frames,
    read_info,
)
from emu3_megatron.media.writers import write_clip


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    """Two seconds at 10 frames a second that grow brighter frame by frame."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    brightness = torch.linspace(-0.9, 0.9, 20).view(20, 1, 1, 1)
    write_clip(path, brightness.expand(20, 3, 48, 64), fps=10)
    return path


def quarters():
    """Red, green / black, blue: no turn of it looks like another."""
    pixels_hwc = np.zeros((48, 64, 3), np.uint8)
    pixels_hwc[:24, :32], pixels_hwc[:24, 32:], pixels_hwc[24:, 32:] = np.eye(3) * 255
    return Image.fromarray(pixels_hwc)


# Frames


def test_frames_have_a_number_and_a_time(clip_path):
    frames = list(read_frames(clip_path))

    assert [frame.number for frame in frames] == list(range(20))
    assert [frame.time for frame in frames] == pytest.approx(np.arange(20) / 10)


def test_reading_begins_before_its_start(clip_path):
    first = next(read_frames(clip_path, start=1.5))

    assert first.time <= 1.5


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("rotation", [0, 90, -90, 180])
def test_a_phone_held_upright_gives_upright_frames(tmp_path, suffix, rotation):
    path = write_video(tmp_path / f"a.{suffix}", [quarters()] * 8, rotation=rotation)

    frame = next(read_frames(path)).image()

    _, by_opencv = cv2.VideoCapture(str(path)).read()  # turns it too
    np.testing.assert_array_equal(np.asarray(frame), by_opencv[..., ::-1])
    assert frame.size == ((48, 64) if rotation in (90, -90) else (64, 48))


@pytest.mark.parametrize("rotation", [0, 90, -90, 180])
def test_a_mirrored_video_is_mirrored(tmp_path, rotation):
    path = write_video(tmp_path / "a.mp4", [quarters()] * 8, rotation=rotation, mirrored=True)

    frame = next(read_frames(path)).image()

    expected = quarters().rotate(rotation, expand=True)
    expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert frame.size == expected.size
    difference = np.asarray(frame, int) - np.asarray(expected, int)
    assert np.median(abs(difference)) <= 2  # colours bleed at the borders


def test_every_frame_of_a_rotated_video_is_turned_after_a_seek_too(tmp_path):
    path = write_video(tmp_path / "a.mp4", [quarters()] * 24, rotation=90)

    assert {frame.image().size for frame in read_frames(path)} == {(48, 64)}
    assert {frame.image().size for frame in read_frames(path, start=2)} == {(48, 64)}


def test_times_count_from_the_videos_beginning(tmp_path):
    path = write_video(tmp_path / "a.mkv", [quarters()] * 4, times=[5.0, 5.25, 5.5, 5.75])

    assert [frame.time for frame in read_frames(path)] == pytest.approx([0, 0.25, 0.5, 0.75])


# Rates


def at(*times):
    """Frames that are shown at these times."""
    return [Frame("a.mp4", number, time, None) for number, time in enumerate(times)]


@pytest.mark.parametrize(
    ("fps", "numbers"),
    [(5, [0, 2, 2, 2, 3]), (2.5, [0, 2, 3]), (10, [0, 1, 2, 2, 2, 2, 2, 2, 3, 4])],
)
def test_uneven_frames_are_read_by_an_even_clock(fps, numbers):
    frames = at(0.0, 0.1, 0.2, 0.8, 0.9)

    assert [frame.number for frame in frames_at_rate(frames, fps)] == numbers


def test_the_clock_begins_where_it_is_told():
    frames = at(*np.arange(10) / 10)

    assert [frame.number for frame in frames_at_rate(frames, 5, start=0.3)] == [3, 5, 7, 9]
    assert list(frames_at_rate(frames, 5, start=1.5)) == []


def test_rounded_times_lose_no_frame():
    rounded = [round(i / 30, 3) for i in range(31)]

    assert [frame.number for frame in frames_at_rate(at(*rounded), 30)] == list(range(31))


def test_uneven_times_are_a_variable_rate():
    assert not is_variable([0.0, 0.033, 0.067, 0.1])
    assert is_variable([0.0, 0.033, 0.2, 0.233])


def test_the_mean_rate_is_what_is_stated_where_that_is_so():
    assert mean_rate([0.0, 0.033, 0.067, 0.1], stated=29.97) == 29.97
    assert mean_rate([0.0, 0.1, 0.2], stated=29.97) == pytest.approx(10)
    assert mean_rate([0.0], stated=25) == 25


# Clips


def test_a_clip_is_what_was_written(clip_path):
    pixels_tchw = read_clip(clip_path, area=48 * 64, fps=10)

    assert pixels_tchw.shape == (20, 3, 48, 64)
    brightness = pixels_tchw.mean((1, 2, 3))
    torch.testing.assert_close(brightness, torch.linspace(-0.9, 0.9, 20), atol=0.05, rtol=0)
    info = read_info(clip_path)
    assert (info.fps, info.last_frame_time) == (10, pytest.approx(1.9))


def test_a_clip_at_another_rate_and_start(clip_path):
    everything = read_clip(clip_path, area=48 * 64, fps=10)

    clip = read_clip(clip_path, area=48 * 64, fps=5, start=1, num_frames=4)

    assert torch.equal(clip, everything[[10, 12, 14, 16]])


def test_a_clip_between_frames_shows_the_frame_before(clip_path):
    everything = read_clip(clip_path, area=48 * 64, fps=10)

    clip = read_clip(clip_path, area=48 * 64, fps=4, start=1, num_frames=4)

    assert torch.equal(clip, everything[[10, 12, 15, 17]])


def test_a_clip_past_the_end_is_refused(clip_path):
    with pytest.raises(InputError, match=r"clip\.mp4: no frame at 9 seconds"):
        read_clip(clip_path, area=64, fps=10, start=9)


def test_a_narrow_video_is_named_by_its_upright_size(tmp_path):
    narrow = Image.new("RGB", (128, 16))
    path = write_video(tmp_path / "narrow.mp4", [narrow] * 4, rotation=90)

    with pytest.raises(InputError, match=r"narrow\.mp4: 16x128 is narrower"):
        read_clip(path, area=64, fps=8)


# What cannot be read


@pytest.mark.parametrize("read", [read_info, lambda path: list(read_frames(path))])
@pytest.mark.parametrize("content", [None, b"", b"not a video at all"])
def test_what_is_no_video_is_refused_and_nothing_else_says_so(tmp_path, capfd, read, content):
    path = tmp_path / "broken.mp4"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(InputError, match=r"broken\.mp4: not a readable video \("):
        read(path)
    assert capfd.readouterr() == ("", "")


def damaged(path, folder, size=200):
    """A copy of a video with so many bytes of a frame overwritten."""
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + 4 + 700  # the encoder's own words come first
    data[middle : middle + size] = b"\xff" * size
    copy = folder / f"damaged{path.suffix}"
    copy.write_bytes(data)
    return copy


def test_what_damaged_packets_show_is_left_out_and_the_rest_is_read(clip_path, tmp_path):
    frames = list(read_frames(damaged(clip_path, tmp_path)))

    assert 0 < len(frames) < 20
    assert [frame.number for frame in frames] == list(range(len(frames)))
    times = [frame.time for frame in frames]
    assert times == sorted(times)
    again = [frame.time for frame in read_frames(damaged(clip_path, tmp_path))]
    assert again == times


def test_a_video_of_which_no_frame_decodes_is_refused(clip_path, tmp_path):
    with pytest.raises(InputError, match=r"damaged\.mp4: not a readable video"):
        list(read_frames(damaged(clip_path, tmp_path, size=100_000)))


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())

    with pytest.raises(InputError, match=r"sound\.mp4: holds no video"):
        list(read_frames(tmp_path / "sound.mp4"))


def test_an_error_of_the_caller_stays_what_it_is(clip_path):
    def fail(frame):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        list(map(fail, read_frames(clip_path)))
