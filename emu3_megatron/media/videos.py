"""Clips to pixels and back."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import torch
from av.container import InputContainer
from torch import Tensor

from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing
from emu3_megatron.media.images import check_aspect, resize_to_area, to_image, to_pixels

CLIP_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"})


@dataclass(frozen=True)
class Clip:
    pixels_tchw: Tensor  # float32 in [-1, 1], sides divisible by 8
    fps: float


def read_clip(
    path: str | Path,
    *,
    area: int,
    fps: float | None = None,
    start: float = 0,
    num_frames: int | None = None,
) -> Clip:
    """Read frames of a clip.

    Args:
        area: resize each frame to about so many pixels, aspect kept, sides divisible by 8.
        fps: frames a second to take; the clip's own rate by default.
        start: seconds into the clip.
        num_frames: at most so many; the clip may hold fewer. All by default.

    Raises:
        InputError: naming the file, when it cannot be read, is too narrow, or has no frame there.
    """
    with _opened(path) as (container, stream):
        if start > 0:
            container.seek(int(start * av.time_base))
        rate = fps or float(stream.average_rate or 0)
        if rate <= 0:
            raise InputError(f"{path}: does not say its frames a second; give fps")
        picked = _pick(container.decode(stream), start, fps)
        frames = [
            to_pixels(resize_to_area(frame.to_image(), area))
            for frame in islice(picked, num_frames)
        ]
    if not frames:
        raise InputError(f"{path}: no frame at {start:g} seconds or later")
    return Clip(torch.stack(frames), rate)


def last_frame_time(path: str | Path) -> float:
    """Seconds at which the last frame begins, by what the clip says. Raises like `read_clip`."""
    with _opened(path) as (container, stream):
        seconds = (container.duration or 0) / av.time_base
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        return seconds - 1 / float(stream.average_rate or 1)


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[InputContainer, av.VideoStream]]:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path}: holds no video")
            stream = container.streams.video[0]
            check_aspect(path, stream.width, stream.height)
            yield container, stream
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{path}: not a readable clip ({error})") from None


def _pick(
    frames: Iterable[av.VideoFrame], start: float, fps: float | None
) -> Iterator[av.VideoFrame]:
    """Every frame from `start` on, or the first one at or after each tick of a clock of `fps`."""
    ticks = 0
    for frame in frames:
        # containers round the time of a frame, to a millisecond at worst
        time = (frame.time or 0) + 0.001
        if fps is None and time >= start:
            yield frame
        while fps is not None and time >= start + ticks / fps:
            yield frame
            ticks += 1


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
