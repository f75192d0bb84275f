"""Images and videos of every kind, written for the tests that read them."""

import io
import struct
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


def adobe_rgb() -> bytes:
    """An ICC profile of AdobeRGB: its primaries and its gamma."""
    colours = {
        "rXYZ": (0.60974, 0.31111, 0.01947),
        "gXYZ": (0.20528, 0.62567, 0.06087),
        "bXYZ": (0.14919, 0.06322, 0.74457),
        "wtpt": (0.9642, 1.0, 0.8249),
    }
    tags = {
        name.encode(): b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65_536) for v in xyz))
        for name, xyz in colours.items()
    }
    gamma = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(2.19921875 * 256), 0)
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma)
    tags[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", 6) + b"Adobe\0" + bytes(78)
    table, body = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    head = struct.pack(
        ">I4sI4s4s4s",
        132 + len(table) - 4 + len(body),
        b"lcms",
        0x02400000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
    )
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63_190, 65_536, 54_061)
    return head.ljust(128, b"\0") + table + body


def write_video(
    path: Path,
    images: Sequence[Image.Image],
    times: Sequence[float] | None = None,
    rotation: int = 0,
    mirrored: bool = False,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    kind: str | None = None,
    settings: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    **attributes,
) -> Path:
    """A video of images at 8 frames a second, or at times of their own.

    Args:
        kind: of the container, where its name does not say it.
        settings: of the container.
        options: of the encoder.
        attributes: of the encoder's context, such as `sample_aspect_ratio`.
    """
    with av.open(str(path), "w", format=kind, options=settings or {}) as container:
        stream = container.add_stream(codec, rate=8, options=options or {})
        stream.width, stream.height = images[0].size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000)
        for name, value in attributes.items():
            setattr(stream.codec_context, name, value)
        if rotation or mirrored:
            stream.set_display_rotation(rotation, hflip=mirrored)
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_image(image)
            frame.pts = round(1000 * (times[number] if times else number / 8))
            frame.time_base = Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
