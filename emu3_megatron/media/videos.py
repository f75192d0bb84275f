"""Reads videos: upright frames by number and time, and clips at an even frame rate."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
import torch
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream
from PIL import Image
from torch import Tensor

from emu3_megatron.errors import InputError
from emu3_megatron.media.files import UnreadableError, reason_of
from emu3_megatron.media.frames import conversions, shown_image, shown_size
from emu3_megatron.media.images import check_aspect, scaled, size_for_area
from emu3_megatron.media.packets import decode_packets

T = TypeVar("T")

_WIDEST_PIXEL = 4
_NO_TIMES = 0x80  # AVFMT_NOTIMESTAMPS
_THREADS = 2  # of a decoder: each holds frames of its own, and there is a worker for each core
ROUNDING = 1e-3  # seconds to which containers round the time of a frame, at worst


@dataclass(frozen=True)
class Frame:
    """One decoded frame.

    Attributes:
        number: counted from 0, from where reading began, in the order in which frames are shown.
        time: seconds since the video's beginning at which it is shown, by the container.
        pixel_aspect: width of a pixel over its height.
    """

    path: Path
    number: int
    time: float
    video_frame: av.VideoFrame
    pixel_aspect: Fraction = Fraction(1)

    def image(self) -> Image.Image:
        """As players show it: RGB, upright, with square pixels. Raises UnreadableError."""
        return self._converted(partial(shown_image, self.video_frame, self.pixel_aspect))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the image."""
        return shown_size(self.video_frame, self.pixel_aspect)

    @property
    def notes(self) -> list[str]:
        """What is done to the frame to make that image."""
        return conversions(self.video_frame, self.pixel_aspect)

    def bgr(self) -> np.ndarray:
        """Blue, green and red [h, w, 3] as OpenCV has them, not turned. Raises UnreadableError."""
        return self._converted(partial(self.video_frame.to_ndarray, format="bgr24"))

    def _converted(self, convert: Callable[[], T]) -> T:
        try:
            return convert()
        except Exception as error:  # PyAV raises what the format leads it to
            raise _unreadable(self.path, error) from None


def read_frames(path: str | Path, start: float = 0) -> Iterator[Frame]:
    """Decode a video.

    Args:
        start: seconds; reading begins at a frame before it, from which decoding can begin.

    Raises:
        UnreadableError: the file cannot be read, or holds no video of which a frame can be decoded.
    """
    try:
        with _open(path) as container:
            stream = _best_stream(container, path)
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = _THREADS
            begin = float((stream.start_time or 0) * (stream.time_base or 0))
            timed = _has_times(container, stream)
            if start > 0 and timed:  # of frames without times nobody knows where a seek ends
                container.seek(int((start + begin) * av.time_base))
            step, time = 1 / (_stated_rate(stream) or 1), None
            for number, frame in enumerate(decode_packets(container, stream)):
                if timed and frame.time is not None:
                    time = frame.time - begin
                else:
                    time = 0.0 if time is None else time + step
                yield Frame(Path(path), number, time, frame, _pixel_aspect(stream, path))
    except InputError:
        raise
    except Exception as error:  # PyAV raises what the damage leads it to
        raise _unreadable(path, error) from None


@dataclass(frozen=True)
class VideoInfo:
    """What a container says about its video; 0 where it says nothing.

    Attributes:
        fps: frames a second, on average.
        seconds: duration.
    """

    fps: float
    seconds: float

    @property
    def last_frame_time(self) -> float:
        """Seconds at which the last frame is shown."""
        return max(0.0, self.seconds - 1 / (self.fps or 1))


def read_info(path: str | Path) -> VideoInfo:
    """Raises UnreadableError when the file cannot be read, or holds no video."""
    with _open(path) as container:
        stream = _best_stream(container, path)
        fps = _stated_rate(stream)
        seconds = (container.duration or 0) / av.time_base
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        return VideoInfo(fps, seconds or _counted_seconds(container, stream, fps))


def read_clip(
    path: str | Path, *, area: int, fps: float, start: float = 0, num_frames: int | None = None
) -> Tensor:
    """Read a clip at an even rate.

    Args:
        area: resize each frame to about so many pixels, aspect kept, sides divisible by 8.
        fps: frames a second to take: what is shown at each tick of a clock.
        start: seconds into the video.
        num_frames: at most so many; the video may hold fewer. All by default.

    Returns:
        Pixels [t, 3, h, w], float32 in [-1, 1].

    Raises:
        InputError: naming the file, when it cannot be read, is too narrow, or has no frame there.
    """
    shown = frames_at_rate(read_frames(path, start), fps, start)
    pixels_tchw = clip_pixels(_not_narrow(itertools.islice(shown, num_frames)), area)
    if not len(pixels_tchw):
        raise InputError(f"{path}: no frame at {start:g} seconds or later")
    return pixels_tchw


def read_overview(
    path: str | Path, *, area: int, fps: float, max_frames: int
) -> tuple[Tensor, float]:
    """A whole video, at fewer frames a second where it would have more than `max_frames`.

    Returns:
        Pixels as `read_clip` gives them, and their frames a second, rounded to thousandths.

    Raises:
        InputError: as `read_clip`.
    """
    seconds = read_info(path).seconds
    fps = min(fps, max_frames / seconds if seconds else fps)
    return read_clip(path, area=area, fps=fps, num_frames=max_frames), round(fps, 3)


def _not_narrow(frames: Iterable[Frame]) -> Iterator[Image.Image]:
    for frame in of_one_size(frames):
        check_aspect(frame.path, *frame.size)
        yield frame.image()


def of_one_size(frames: Iterable[Frame]) -> Iterator[Frame]:
    """The same frames.

    Raises:
        UnreadableError: the video changes its size on the way.
    """
    first = None
    for frame in frames:
        first = first or frame
        if frame.size != first.size:
            (width, height), (later_width, later_height) = first.size, frame.size
            raise UnreadableError(
                frame.path,
                f"changes its size from {width}x{height} to {later_width}x{later_height} at "
                f"{frame.time:.3f} seconds; cut it there",
            )
        yield frame


def clip_pixels(images: Iterable[Image.Image], area: int) -> Tensor:
    """Pixels [t, 3, h, w], float32 in [-1, 1], of images of one size, resized to about `area`."""
    return scaled(clip_bytes(images, area))


def clip_bytes(images: Iterable[Image.Image], area: int) -> Tensor:
    """The same as uint8, which takes a quarter of the memory."""
    data, size = bytearray(), (0, 0)  # grows in its place, where a stack of images would copy them
    for image in images:
        size = size if data else size_for_area(*image.size, area)
        values_hwc = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
        data += values_hwc.transpose(2, 0, 1).tobytes()
    width, height = size
    values = np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)
    frames = len(data) // max(1, 3 * width * height)
    return torch.from_numpy(values.reshape(frames, 3, height, width))


def clip_pieces(images: Iterable[Image.Image], area: int, at_once: int) -> Iterator[Tensor]:
    """The same, `at_once` frames at a time."""
    images = iter(images)
    while len(piece_tchw := clip_bytes(itertools.islice(images, at_once), area)):
        yield piece_tchw


def frames_at_rate(
    frames: Iterable[Frame], fps: float, start: float | None = None
) -> Iterator[Frame]:
    """The frame shown at each tick of an even clock; the last tick is at or before the last frame.

    Args:
        fps: ticks a second.
        start: seconds at which the clock begins; by default with the first frame.
    """
    ticks, shown = 0, None
    for frame in frames:
        start = frame.time if start is None else start
        while shown is not None and start + ticks / fps < frame.time - ROUNDING:
            yield shown
            ticks += 1
        shown = frame
    if shown is not None and start is not None and start + ticks / fps <= shown.time + ROUNDING:
        yield shown


def is_variable(times: Sequence[float]) -> bool:
    """Do frames follow one another at uneven intervals?"""
    steps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return bool(steps) and max(steps) - min(steps) > 0.25 * (sum(steps) / len(steps)) + 2 * ROUNDING


def mean_rate(times: Sequence[float], stated: float) -> float:
    """Frames a second of frames shown at these times; what is stated, where that is so."""
    span = times[-1] - times[0]
    rate = (len(times) - 1) / span if span > 0 else stated
    return stated if abs(rate - stated) < 0.01 * stated else rate


def _open(path: str | Path) -> InputContainer:
    av.logging.set_libav_level(av.logging.PANIC)  # FFmpeg would say on stderr what the error says
    try:
        container = av.open(str(path))
    except Exception as error:  # PyAV raises what the damage leads it to
        raise _unreadable(path, error) from None
    return container


def _best_stream(container: InputContainer, path: str | Path) -> VideoStream:
    """The largest that moves, the first of such: covers and previews are streams too."""
    stills = Disposition.attached_pic | Disposition.timed_thumbnails
    moving = [stream for stream in container.streams.video if not stream.disposition & stills]
    if not moving:
        raise UnreadableError(path, "holds no video")
    known = [stream for stream in moving if stream.codec_context is not None]
    if not known:
        raise UnreadableError(path, "its codec is not known")
    return max(known, key=lambda stream: (stream.frames != 1, stream.width * stream.height))


def _pixel_aspect(stream: VideoStream, path: str | Path) -> Fraction:
    aspect = stream.sample_aspect_ratio or Fraction(1)
    if not 1 / _WIDEST_PIXEL <= aspect <= _WIDEST_PIXEL:
        raise UnreadableError(path, f"has pixels of {aspect.numerator}:{aspect.denominator}")
    return aspect


def _has_times(container: InputContainer, stream: VideoStream) -> bool:
    """Does the container say when each frame is shown? AVI says when each is decoded."""
    reordered = "avi" in container.format.name and stream.codec_context.has_b_frames
    return not reordered and not container.format.flags & _NO_TIMES


def _counted_seconds(container: InputContainer, stream: VideoStream, fps: float) -> float:
    """The duration by all packets, of a file that does not say it, as a browser records it."""
    count, end, base = 0, 0.0, stream.time_base or 0
    for packet in container.demux(stream):
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * base))
        count += packet.size > 0
    begin = float((stream.start_time or 0) * base)
    return end - begin if end > begin else count / fps if fps else 0.0


def _unreadable(path: str | Path, error: Exception) -> UnreadableError:
    return UnreadableError(path, f"not a readable video ({reason_of(error)})")


def _stated_rate(stream: VideoStream) -> float:
    return float(stream.guessed_rate or stream.average_rate or 0)
