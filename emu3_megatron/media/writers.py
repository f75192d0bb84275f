"""Writes an image as .png, a clip as .mp4 or .gif."""

from fractions import Fraction
from pathlib import Path

import av
from PIL import Image
from torch import Tensor

from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing
from emu3_megatron.media.images import to_image


def write_png(path: str | Path, image: Image.Image) -> None:
    with replacing(path) as beside:
        image.save(beside, "PNG")


def write_clip(path: str | Path, pixels_tchw: Tensor, fps: float) -> None:
    """Write pixels [t, 3, h, w] in [-1, 1] as an .mp4 (H.264, even sides) or an animated .gif."""
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise InputError(f"{path}: a clip is written as one of {', '.join(_WRITERS)}")
    with replacing(path) as beside:
        _WRITERS[path.suffix](beside, pixels_tchw, fps)


def _write_gif(path: Path, pixels_tchw: Tensor, fps: float) -> None:
    first, *rest = (to_image(pixels_chw) for pixels_chw in pixels_tchw)
    milliseconds = round(1000 / fps)
    first.save(path, "GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0)


def _write_mp4(path: Path, pixels_tchw: Tensor, fps: float) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = pixels_tchw.shape[-2:]
        stream.pix_fmt = "yuv420p"
        for pixels_chw in pixels_tchw:
            container.mux(stream.encode(av.VideoFrame.from_image(to_image(pixels_chw))))
        container.mux(stream.encode())


_WRITERS = {".mp4": _write_mp4, ".gif": _write_gif}
