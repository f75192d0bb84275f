"""Shots of a video: where PySceneDetect's content and threshold detectors find cuts and fades."""

import itertools
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emu3_megatron.errors import InputError
from emu3_megatron.media.frames import mean_rate, open_video

_ROUNDING = 1e-6  # seconds


@dataclass(frozen=True)
class Shots:
    """A video cut at its scene changes.

    Attributes:
        ranges: (first frame, frame after the last) of each shot, in order, without gaps. Frames
            are counted; PySceneDetect's own numbers are times where the rate varies.
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
        InputError: the video cannot be read, or has no frames.
    """
    from scenedetect import (
        ContentDetector,
        FrameTimecode,
        SceneDetector,
        SceneManager,
        ThresholdDetector,
        VideoStreamAv,
    )

    class Clock(SceneDetector):
        """Detects nothing, and notes when each frame is shown."""

        def __init__(self) -> None:
            super().__init__()
            self.seconds: list[float] = []

        def process_frame(
            self, timecode: FrameTimecode, frame_img: np.ndarray
        ) -> list[FrameTimecode]:
            self.seconds.append(timecode.seconds)
            return []

    clock = Clock()
    open_video(path).close()  # refuses in our words what cannot be opened
    try:
        video = VideoStreamAv(str(path))
        manager = SceneManager()
        manager.add_detector(ContentDetector(content_threshold, min_shot_frames))
        manager.add_detector(ThresholdDetector(fade_threshold, min_shot_frames))
        manager.add_detector(clock)
        manager.detect_scenes(video)
    except Exception as error:  # of PyAV or PySceneDetect, as the damage wants it
        raise InputError(f"not a readable video ({_line(error)})") from None
    if not clock.seconds:
        raise InputError("a video without frames")
    starts = [scene[0].seconds for scene in manager.get_scene_list(start_in_scene=True)]
    firsts = [bisect_left(clock.seconds, start - _ROUNDING) for start in starts]
    borders = [*firsts, len(clock.seconds)]
    fps = mean_rate(clock.seconds, float(video.frame_rate))
    return Shots(list(itertools.pairwise(borders)), fps)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def cut_long(shots: Shots, max_seconds: float) -> list[tuple[int, int]]:
    """Shots longer than `max_seconds` cut into equal parts, all longer than half of it."""
    clips = []
    for first, end in shots.ranges:
        parts = max(1, -(-(end - first) // max(1, int(max_seconds * shots.fps))))
        edges = [first + (end - first) * i // parts for i in range(parts + 1)]
        clips += list(itertools.pairwise(edges))
    return clips
