"""Shots of a video: where PySceneDetect's content and threshold detectors find cuts and fades."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emu3_megatron.media.files import UnreadableError
from emu3_megatron.media.videos import Frame, mean_rate, read_frames, read_info
from emu3_megatron.prepare.items import with_progress


@dataclass(frozen=True)
class Shots:
    """A video cut at its scene changes, and where its size changes.

    Attributes:
        ranges: (first frame, frame after the last) of each shot, in order, without gaps.
        fps: frames a second, on average.
    """

    ranges: list[tuple[int, int]]
    fps: float


def find_shots(
    path: Path, content_threshold: float, fade_threshold: float, min_shot_frames: int
) -> Shots:
    """Detect shots.

    Args:
        content_threshold: of ContentDetector: mean change of HSV between two frames.
        fade_threshold: of ThresholdDetector: mean intensity below which a frame is black.
        min_shot_frames: a cut closer than this to the one before is not made.

    Raises:
        UnreadableError: the video cannot be read, has no frames, or no frame rate.
    """
    from scenedetect import ContentDetector, FrameTimecode, ThresholdDetector

    detectors = (
        ContentDetector(content_threshold, min_shot_frames),
        ThresholdDetector(fade_threshold, min_shot_frames),
    )
    times: list[float] = []
    cuts: set[int] = set()
    size: tuple[int, int] | None = None
    stated_fps = read_info(path).fps
    for number, (frame, small_hwc) in enumerate(_small_frames(path)):
        times.append(frame.time)
        if frame.size != size:
            cuts.add(number)
            size = frame.size
        # Frames are counted, at a variable rate too: a time would come back rounded.
        position = FrameTimecode(number, stated_fps or 1.0)
        for detector in detectors:
            cuts.update(cut.frame_num for cut in detector.process_frame(position, small_hwc))
    if not times:
        raise UnreadableError(path, "a video without frames")
    fps = mean_rate(times, stated_fps)
    if fps <= 0:
        raise UnreadableError(path, "does not say how many frames a second it has")
    borders = [0, *sorted(cuts - {0}), len(times)]
    return Shots(list(itertools.pairwise(borders)), fps)


def _small_frames(path: Path) -> Iterator[tuple[Frame, np.ndarray]]:
    """Each frame, and its BGR, reduced as PySceneDetect's own SceneManager does it."""
    import cv2
    from scenedetect.scene_manager import compute_downscale_factor

    size: tuple[int, int] | None = None
    for frame in with_progress(read_frames(path)):
        bgr_hwc = frame.bgr()
        height, width, _ = bgr_hwc.shape
        if size is None:  # of the first frame: a video can change its size on the way
            factor = compute_downscale_factor(max(width, height))
            size = (max(1, round(width / factor)), max(1, round(height / factor)))
        if size != (width, height):
            bgr_hwc = cv2.resize(bgr_hwc, size, interpolation=cv2.INTER_LINEAR)
        yield frame, bgr_hwc


def cut_long(shots: Shots, max_seconds: float) -> list[tuple[int, int]]:
    """Shots longer than `max_seconds` cut into equal parts, all longer than half of it."""
    clips = []
    for first, end in shots.ranges:
        parts = max(1, -(-(end - first) // max(1, int(max_seconds * shots.fps))))
        edges = [first + (end - first) * i // parts for i in range(parts + 1)]
        clips += list(itertools.pairwise(edges))
    return clips
