"""Images and videos of every kind, written for the tests that read them."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", **settings) -> bytes:
    """The content of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def write_video(
    path: Path,
    images: Sequence[Image.Image],
    times: Sequence[float] | None = None,
    rotation: int = 0,
    mirrored: bool = False,
) -> Path:
    """A video of images at 8 frames a second, or at times of their own."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height = images[0].size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation or mirrored:
            stream.set_display_rotation(rotation, hflip=mirrored)
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_image(image)
            frame.pts = round(1000 * (times[number] if times else number / 8))
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
