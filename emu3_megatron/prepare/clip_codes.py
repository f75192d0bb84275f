"""Codes of the kept clips of videos, and the pictures that captions are asked for by.

Both come of one pass of decoding over each video, and lie in a file for each video until captions
make documents of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from torch import Tensor

from emu3_megatron.config.prepare import ClipsConfig
from emu3_megatron.grammar import Vision
from emu3_megatron.media.files import UnreadableError, path_of
from emu3_megatron.media.images import size_for_area
from emu3_megatron.media.videos import Frame, clip_pieces, frames_at_rate
from emu3_megatron.prepare.captions.endpoint import as_sent
from emu3_megatron.prepare.clip_frames import ClipFrames
from emu3_megatron.prepare.codes import Coder
from emu3_megatron.prepare.codes_files import Coded, CodesFile, read_errors, write_codes
from emu3_megatron.prepare.images import item_name
from emu3_megatron.prepare.items import Failed, attempt, timed
from emu3_megatron.prepare.stores.folders import on_this_machine
from emu3_megatron.prepare.tables import Row
from emu3_megatron.prepare.workspace import Workspace, digest, folder_of
from emu3_megatron.vision.tokenizer import SPATIAL_FACTOR, TEMPORAL_FACTOR
from emu3_megatron.vocabulary import Vocabulary

VARIABLE = "variable frame rate"  # a note of a clip
CAPTION_FRAMES = 12
_AT_ONCE = 16  # frames that are encoded
# What decides the codes of a clip, besides the settings.
_COLUMNS = ("content", "start_frame", "end_frame", "fps", "width", "height", "notes")


@dataclass(frozen=True)
class VideoTask:
    """The kept clips of one video, in order."""

    out: Path
    rows: list[Row]

    @property
    def size(self) -> int:
        return len(self.rows)


class EncodeVideo:
    """Encodes the clips of a video, some frames in memory at a time."""

    def __init__(self, config: ClipsConfig, tokenizer: Path, vocabulary: Vocabulary, device: str):
        self._config, self._vocabulary = config, vocabulary
        self._coder = Coder(tokenizer, vocabulary, device)

    def __call__(self, task: VideoTask) -> None:
        write_codes(task.out, self._clips(task.rows), self._vocabulary)

    def _clips(self, rows: Sequence[Row]) -> Iterator[tuple[int, Coded | str]]:
        file = path_of(folder_of(self._config), rows[0]["source"])
        with ExitStack() as stack:
            copy = attempt(item_name(rows[0]), lambda: stack.enter_context(on_this_machine(file)))
            if isinstance(copy, Failed):
                yield from ((place, copy.reason) for place in range(len(rows)))
            else:
                yield from self._clips_of(ClipFrames(copy), rows)

    def _clips_of(
        self, frames: ClipFrames, rows: Sequence[Row]
    ) -> Iterator[tuple[int, Coded | str]]:
        for place, row in enumerate(rows):
            name = item_name(row)
            found = attempt(name, partial(self._encode, frames, row), timed=False)
            yield place, found.reason if isinstance(found, Failed) else found

    def _encode(self, frames: ClipFrames, row: Row) -> Coded:
        pictures: list[bytes] = []
        codes_fhw = self._coder.clip(timed(self._pixels(frames, row, pictures)))
        fps = row["fps"] / stride_of(row, self._config)
        seconds = round(len(codes_fhw) * TEMPORAL_FACTOR / fps, 3)
        return Coded(Vision.clip(codes_fhw, round(fps, 3), seconds), tuple(pictures))

    def _pixels(self, frames: ClipFrames, row: Row, pictures: list[bytes]) -> Iterator[Tensor]:
        """Pixels uint8 [t, 3, h, w] of the frames that are coded, some at a time."""
        shown = self._with_pictures(
            frames.clip(row["start_frame"], row["end_frame"]), row, pictures
        )
        images = (frame.image() for frame in even_frames(shown, row, stride_of(row, self._config)))
        count = 0
        for piece_tchw in clip_pieces(images, self._config.area, _AT_ONCE):
            count += len(piece_tchw)
            yield piece_tchw
        if count < TEMPORAL_FACTOR:
            raise UnreadableError(
                row["source"], "changed while it was prepared; run the command again"
            )

    def _with_pictures(
        self, frames: Iterable[Frame], row: Row, pictures: list[bytes]
    ) -> Iterator[Frame]:
        """The same frames; some of them become pictures on the way."""
        side = _side_of(row, self._config)
        wanted = caption_frames(row) if side else ()
        for frame in frames:
            if frame.number in wanted:
                pictures.append(as_sent(frame.image(), side))
            yield frame


def encode_videos(
    workspace: Workspace, config: ClipsConfig, rows: Sequence[Row], settings: str
) -> None:
    """Encode what is kept; `codes` of a row says where they lie. What fails is set aside.

    Args:
        settings: hash of what decides the codes, besides the rows.
    """
    recipe = workspace.recipe
    kept = [row for row in rows if row["kept"]]
    folder = workspace.work("clips", "codes")
    tasks = [
        VideoTask(folder / f"{_name(some, config, settings)}.npz", some)
        for some in (list(group) for _, group in groupby(kept, lambda row: row["source"]))
    ]
    assert recipe.tokenizer is not None, "refused at the beginning"
    make = partial(EncodeVideo, config, recipe.tokenizer, recipe.vocabulary(), recipe.run.device)
    workspace.run(make, tasks, "clips: codes/clip", on_device=True)
    for task in tasks:
        errors = read_errors(task.out)
        for place, row in enumerate(task.rows):
            if place in errors:
                row["kept"], row["reason"] = False, f"unreadable: {errors[place]}"
            row["codes"] = (task.out, place)


def codes_of(row: Row) -> tuple[np.ndarray, float, float]:
    """Codes [t // 4, h / 8, w / 8], frames a second and seconds of an encoded clip."""
    path, place = row["codes"]
    clip = CodesFile(path)[place]
    assert clip.meta.fps is not None
    assert clip.meta.seconds is not None
    return clip.codes, clip.meta.fps, clip.meta.seconds


def pictures_of(row: Row) -> list[bytes]:
    """Even frames of a clip, as the endpoint gets them."""
    path, place = row["codes"]
    return CodesFile(path).pictures(place)


def _name(rows: Sequence[Row], config: ClipsConfig, settings: str) -> str:
    about = [[*(row[column] for column in _COLUMNS), _side_of(row, config)] for row in rows]
    return digest(settings, about)


def _side_of(row: Row, config: ClipsConfig) -> int:
    """Of the pictures of a clip without a caption; 0 where no endpoint is asked."""
    endpoint = config.captions.endpoint
    return endpoint.side if endpoint and not row["captions"] else 0


def caption_frames(row: Row) -> set[int]:
    """Numbers of even frames of a clip."""
    first, frames = row["start_frame"], row["end_frame"] - row["start_frame"]
    number = min(CAPTION_FRAMES, frames)
    return {first + (2 * i + 1) * frames // (2 * number) for i in range(number)}


def even_frames(frames: Iterable[Frame], row: Row, stride: int) -> Iterator[Frame]:
    """Every so many frames; at a variable rate, as many a second, by an even clock."""
    if VARIABLE in row["notes"]:
        return frames_at_rate(frames, row["fps"] / stride)
    return islice(frames, 0, None, stride)


def stride_of(row: Row, config: ClipsConfig) -> int:
    """Of how many frames one is taken, so that the clip's document fits `max_tokens`."""
    width, height = size_for_area(row["width"], row["height"], config.area)
    columns, lines = width // SPATIAL_FACTOR, height // SPATIAL_FACTOR
    frame_tokens = lines * (columns + 1) + 1
    most = max(1, config.max_tokens // frame_tokens) * TEMPORAL_FACTOR
    return max(1, -(-(row["end_frame"] - row["start_frame"]) // most))
