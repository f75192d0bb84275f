"""The frames of the clips of a video, in one pass of decoding."""

from collections.abc import Iterator
from pathlib import Path

from emu3_megatron.media.videos import Frame, read_frames
from emu3_megatron.prepare.items import with_progress


class ClipFrames:
    """Gives the frames of one clip after another.

    Frames are decoded in order from the first: of many files nobody can tell whether what follows a
    seek looks and counts the same. A clip that fails costs those after it nothing.
    """

    def __init__(self, path: Path):
        self._frames = with_progress(read_frames(path))
        self._error: Exception | None = None

    def clip(self, first: int, end: int) -> Iterator[Frame]:
        """Frames `first` to `end - 1`, which no earlier clip holds.

        Raises:
            UnreadableError: the video cannot be read so far.
        """
        while (frame := self._next()) is not None:
            if frame.number >= first:
                yield frame
            if frame.number >= end - 1:
                return

    def _next(self) -> Frame | None:
        if self._error is not None:
            raise self._error
        try:
            return next(self._frames, None)
        except Exception as error:
            self._error = (
                error  # for the next clips: a generator that failed only says that it ended
            )
            raise
