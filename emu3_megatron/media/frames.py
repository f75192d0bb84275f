"""Frames of a video, by number, upright."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
from PIL import Image

from emu3_megatron.errors import InputError


@dataclass(frozen=True)
class Frame:
    """One decoded frame.

    Attributes:
        number: counted from 0 in the order in which frames are shown.
        time: seconds, by the container.
    """

    number: int
    time: float
    video_frame: av.VideoFrame

    def image(self) -> Image.Image:
        """RGB, turned as the container says."""
        image = self.video_frame.to_image()
        turn = int(getattr(self.video_frame, "rotation", 0) or 0) % 360
        return image.rotate(turn, expand=True) if turn else image


def open_video(path: Path) -> av.container.InputContainer:
    """Open a file that holds a video stream.

    Raises:
        InputError: it cannot be read, or holds none.
    """
    av.logging.set_libav_level(av.logging.PANIC)  # FFmpeg says on stderr what a row says already
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"not a readable video ({error.strerror})") from None
    if not container.streams.video:
        container.close()
        raise InputError("holds no video")
    return container


def read_frames(path: Path, first: int = 0, end: int | None = None) -> Iterator[Frame]:
    """Frames from `first` up to, not including, `end`; all before are decoded and passed over.

    Raises:
        InputError: the file cannot be read, or holds no video.
    """
    with open_video(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        try:
            for number, frame in enumerate(container.decode(stream)):
                if end is not None and number >= end:
                    return
                if number >= first:
                    yield Frame(number, float(frame.time or 0), frame)
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"not a readable video ({error.strerror})") from None


def is_variable(times: list[float]) -> bool:
    """Do frames follow one another at uneven intervals? Containers round to a millisecond."""
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return bool(steps) and max(steps) - min(steps) > 0.25 * (sum(steps) / len(steps)) + 0.002


def mean_rate(times: Sequence[float], said: float) -> float:
    """Frames a second of frames shown at these times; what the container says, if that is so."""
    span = times[-1] - times[0]
    rate = (len(times) - 1) / span if span > 0 else said
    return said if abs(rate - said) < 0.01 * said else rate


def shrink(image: Image.Image, side: int) -> Image.Image:
    """The image with its shorter side reduced to `side`; smaller ones stay."""
    scale = side / min(image.size)
    if scale >= 1:
        return image
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.BILINEAR)
