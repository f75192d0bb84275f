"""Photos and clips in and out."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

from emu3_megatron.errors import InputError
from emu3_megatron.media.images import (
    load_image,
    resize_to_area,
    size_for_area,
    to_image,
    to_pixels,
)
from emu3_megatron.media.videos import last_frame_time, read_clip, write_clip


def gradient(width: int, height: int) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    values = np.stack((255 * rows / height, 255 * columns / width, rows * 0 + 60), -1)
    return Image.fromarray(values.astype(np.uint8))


def test_pixels_and_back():
    image = gradient(16, 8)
    pixels = to_pixels(image)
    assert pixels.shape == (3, 8, 16)
    assert to_pixels(Image.new("RGB", (8, 8), (0, 255, 0))).unique().tolist() == [-1, 1]
    assert to_image(pixels).tobytes() == image.tobytes()


@pytest.mark.parametrize("size", [(640, 480), (451, 300), (300, 1400), (50, 60)])
def test_resize_keeps_area_and_aspect(size):
    width, height = resize_to_area(gradient(*size), 128 * 128).size
    assert (width % 8, height % 8) == (0, 0)
    assert width * height == pytest.approx(128 * 128, rel=0.1)
    assert width / height == pytest.approx(size[0] / size[1], rel=0.1)


def test_grid_of_the_published_square():
    assert size_for_area(1000, 1000, 720 * 720) == (720, 720)


def test_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    gradient(40, 24).save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (24, 40)


def test_broken_image(tmp_path):
    path = tmp_path / "broken.png"
    gradient(64, 64).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"broken\.png: not a readable image"):
        load_image(path)


def test_narrow_image(tmp_path):
    gradient(101, 20).save(tmp_path / "narrow.png")
    with pytest.raises(InputError, match=r"narrow\.png: 101x20"):
        load_image(tmp_path / "narrow.png")


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    """Two seconds at 10 frames a second that grow brighter frame by frame."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    brightness = torch.linspace(-0.9, 0.9, 20).view(20, 1, 1, 1)
    write_clip(path, brightness.expand(20, 3, 48, 64), fps=10)
    return path


def test_clip_written_and_read(clip_path):
    clip = read_clip(clip_path, area=48 * 64)
    assert clip.fps == 10
    assert clip.pixels_tchw.shape == (20, 3, 48, 64)
    brightness = clip.pixels_tchw.mean((1, 2, 3))
    torch.testing.assert_close(brightness, torch.linspace(-0.9, 0.9, 20), atol=0.05, rtol=0)
    assert last_frame_time(clip_path) == pytest.approx(1.9)


def test_clip_at_another_rate_and_start(clip_path):
    everything = read_clip(clip_path, area=48 * 64).pixels_tchw
    clip = read_clip(clip_path, area=48 * 64, fps=5, start=1, num_frames=4)
    assert torch.equal(clip.pixels_tchw, everything[[10, 12, 14, 16]])


def test_clip_at_its_end(clip_path):
    with pytest.raises(InputError, match="no frame at 9 seconds"):
        read_clip(clip_path, area=64, start=9)


def test_broken_clip(tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"not a clip at all")
    with pytest.raises(InputError, match=r"broken\.mp4: not a readable clip"):
        read_clip(path, area=64)


def test_gif(tmp_path):
    brightness = torch.tensor([-0.5, 0, 0.5]).view(3, 1, 1, 1)
    write_clip(tmp_path / "clip.gif", brightness.expand(3, 3, 16, 16), fps=10)
    with Image.open(tmp_path / "clip.gif") as image:
        assert image.size == (16, 16)
    with av.open(str(tmp_path / "clip.gif")) as container:
        assert container.streams.video[0].average_rate == 10


def test_clip_of_unknown_kind(tmp_path):
    with pytest.raises(InputError, match=r"clip\.xyz"):
        write_clip(tmp_path / "clip.xyz", torch.zeros(1, 3, 16, 16), fps=10)
