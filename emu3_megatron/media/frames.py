"""Turns a decoded video frame into the image that a player shows."""

from fractions import Fraction
from typing import Any

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from PIL import Image

from emu3_megatron.media.colour import colour_note, is_hdr, to_srgb

# How a frame is turned upright, by the linear part of its display matrix: a, b, c, d of
# (x, y) -> (ax + cy, bx + dy).
_TURNS: dict[tuple[int, ...], Image.Transpose] = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {turn for (a, *_), turn in _TURNS.items() if a == 0}


def shown_image(frame: av.VideoFrame, pixel_aspect: Fraction) -> Image.Image:
    """RGB of 8 bits in sRGB, deinterlaced, with square pixels, turned as the container says.

    Args:
        pixel_aspect: width of a pixel over its height.
    """
    stored = _deinterlaced(frame) if frame.interlaced_frame else frame
    image = _in_srgb(stored, *_colours_of(frame))
    size = _square(frame, pixel_aspect)
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    turn = _turn_of(frame)
    return image if turn is None else image.transpose(turn)


def shown_size(frame: av.VideoFrame, pixel_aspect: Fraction) -> tuple[int, int]:
    """Width and height of that image."""
    width, height = _square(frame, pixel_aspect)
    return (height, width) if _turn_of(frame) in _SIDEWAYS else (width, height)


def conversions(frame: av.VideoFrame, pixel_aspect: Fraction) -> list[str]:
    """What is done to the frame: `square pixels`, `deinterlaced`, `pq`, `hlg`, `wide gamut`."""
    return [
        *(["square pixels"] if pixel_aspect != 1 else []),
        *(["deinterlaced"] if frame.interlaced_frame else []),
        *([note] if (note := colour_note(*_colours_of(frame))) else []),
    ]


def _square(frame: av.VideoFrame, pixel_aspect: Fraction) -> tuple[int, int]:
    """Width and height with square pixels: one of them is stretched, so that nothing is lost."""
    if pixel_aspect >= 1:
        return round(frame.width * pixel_aspect), frame.height
    return frame.width, round(frame.height / pixel_aspect)


def _colours_of(frame: av.VideoFrame) -> tuple[int, int]:
    """ColourPrimaries and TransferCharacteristics of H.273."""
    return int(frame.color_primaries), int(frame.color_trc)


def _in_srgb(frame: av.VideoFrame, primaries: int, transfer: int) -> Image.Image:
    if colour_note(primaries, transfer) is None:
        return frame.to_image()
    form = "rgb48le" if is_hdr(transfer) else "rgb24"
    return Image.fromarray(to_srgb(frame.to_ndarray(format=form), primaries, transfer))


def _deinterlaced(frame: av.VideoFrame) -> av.VideoFrame:
    """The lines of one field, and between them what lies along their edges.

    A frame at a time, so that it looks alike wherever reading began.
    """
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base or Fraction(1, 1000),
    )
    graph.link_nodes(source, graph.add("estdif", "mode=frame"), graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    graph.push(None)
    result: Any = graph.pull()
    return result


def _turn_of(frame: av.VideoFrame) -> Image.Transpose | None:
    # Not frame.side_data: it refers to the frame and the frame to it, so that frames would stay in
    # memory until Python looks for such circles.
    side_data = SideDataContainer(frame)  # type: ignore[call-arg]  # PyAV declares none
    matrix: Any = side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return None
    values = np.frombuffer(bytes(matrix), np.int32)[[0, 1, 3, 4]] / (1 << 16)
    return _TURNS.get(tuple(int(value) for value in values.round()))
