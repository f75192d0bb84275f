"""Data pipeline of videos: shots, scores of each clip, decisions, documents."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from emu3_megatron.config.prepare import ClipsConfig
from emu3_megatron.grammar import Document, captioned_clip
from emu3_megatron.media.files import (
    READER_VERSION,
    VIDEO_SUFFIXES,
    File,
    UnreadableError,
    name_of,
    path_of,
)
from emu3_megatron.media.images import shrink
from emu3_megatron.media.videos import Frame, is_variable, mean_rate
from emu3_megatron.prepare.clip_codes import VARIABLE, codes_of
from emu3_megatron.prepare.clip_frames import ClipFrames
from emu3_megatron.prepare.groups import group_numbers
from emu3_megatron.prepare.images import (
    EncodeTask,
    ScoreTask,
    find_sources,
    hold_out,
    inputs_of,
    item_name,
)
from emu3_megatron.prepare.items import Failed, attempt
from emu3_megatron.prepare.parts import Part, Skipped
from emu3_megatron.prepare.scores.classifiers import (
    Classifiers,
    classifier_fault,
    classifier_settings,
)
from emu3_megatron.prepare.scores.duplicates import (
    SIGNED,
    contrast,
    file_hash,
    near_pairs,
    signature,
    signatures,
)
from emu3_megatron.prepare.scores.flow import flow_of
from emu3_megatron.prepare.scores.ocr import TextArea
from emu3_megatron.prepare.scores.quality import quality_of
from emu3_megatron.prepare.shots import cut_long, find_shots
from emu3_megatron.prepare.stores.folders import on_this_machine
from emu3_megatron.prepare.tables import Row, read_tables, write_table
from emu3_megatron.prepare.workspace import Workspace, digest, folder_of, state_or_missing
from emu3_megatron.vision.tokenizer import TEMPORAL_FACTOR
from emu3_megatron.vocabulary import Vocabulary

_QUALITY_FRAMES = 3
_NEAR_BITS = 4  # as of images
_SHOWS = 2.0  # contrast, in OKLab
# What a score is made of, and the classifiers; everything else in ClipsConfig can change without
# scoring again.
_SCORE_FIELDS = {
    "quality",
    "content_threshold",
    "fade_threshold",
    "min_shot_frames",
    "max_seconds",
    "sample_fps",
    "sample_side",
    "ocr",
    "raft",
}


class ScoreClips:
    """Writes the scores of each clip of videos. What cannot be read gets a row that says why."""

    def __init__(self, config: ClipsConfig, device: str):
        self._config = config
        self._quality_by, self._quality = quality_of(config.quality, device)
        self._flow_by, self._flow = flow_of(config.raft, device)
        self._text_area = TextArea()
        self._classifiers = Classifiers(config, device)

    def __call__(self, task: ScoreTask) -> None:
        rows = [row for source in task.sources for row in self.score(source)]
        write_table(task.out, "clips scores", rows)

    def score(self, source: str) -> list[Row]:
        """Rows of the clips of one video, by its path inside the source folder."""
        row: Row = {"source": source}
        clips = attempt(source, partial(self._read, path_of(folder_of(self._config), source), row))
        if isinstance(clips, Failed):
            return [{**row, "error": clips.reason}]
        return [{**row, **scores} for scores in clips]

    def _read(self, file: File, row: Row) -> list[Row]:
        config = self._config
        with on_this_machine(file) as path:
            row["content"] = file_hash(path)  # known of damaged videos too
            shots = find_shots(
                path, config.content_threshold, config.fade_threshold, config.min_shot_frames
            )
            return list(self._clips(path, cut_long(shots, config.max_seconds), shots.fps))

    def _clips(self, path: Path, clips: Sequence[tuple[int, int]], fps: float) -> Iterator[Row]:
        """One pass through the video; no more than one clip's samples are held."""
        frames = ClipFrames(path)
        for first, end in clips:
            kept = _KeptFrames(first, end, fps, self._config)
            for frame in frames.clip(first, end):
                kept.add(frame)
            if kept.size is None:
                raise UnreadableError(path, f"no frame {first}, though it was there before")
            yield self._row(kept, fps)

    def _row(self, kept: "_KeptFrames", fps: float) -> Row:
        samples = [np.asarray(image) for image in kept.samples]
        flows = [self._flow(a, b) for a, b in pairwise(samples)]
        areas = [self._text_area(sample) for sample in samples] if self._config.ocr else []
        frames = kept.end - kept.first
        fps = mean_rate(kept.times, fps)
        return {
            "start_frame": kept.first,
            "end_frame": kept.end,
            "fps": round(fps, 6),
            "seconds": round(frames / fps, 4),
            "width": kept.size[0] if kept.size else None,
            "height": kept.size[1] if kept.size else None,
            "notes": ", ".join(([VARIABLE] if is_variable(kept.times) else []) + kept.notes),
            "quality": min(self._quality(kept.stills)),
            "quality_by": self._quality_by,
            "flow": round(float(np.mean(flows)), 6) if flows else 0.0,
            "flow_by": self._flow_by,
            "text_area": round(float(np.mean(areas)), 5) if areas else None,
            **self._classifiers(kept.stills),
            "near": signature(kept.stills[len(kept.stills) // 2]),
        }


class _KeptFrames:
    """The frames of a clip that are scored, and its times, collected in one pass."""

    def __init__(self, first: int, end: int, fps: float, config: ClipsConfig):
        self.first, self.end = first, end
        self.samples: list[Image.Image] = []
        self.stills: list[Image.Image] = []
        self.times: list[float] = []
        self.size: tuple[int, int] | None = None
        self.notes: list[str] = []  # of the last scored frame
        self._side = config.sample_side
        step = max(1, round(fps / config.sample_fps))
        self._sampled = set(range(first, end, step))
        self._still = {first + (2 * i + 1) * (end - first) // 6 for i in range(_QUALITY_FRAMES)}

    def add(self, frame: Frame) -> None:
        self.times.append(frame.time)
        if frame.number not in self._sampled | self._still:
            return
        image = frame.image()
        self.size, self.notes = image.size, frame.notes
        if frame.number in self._sampled:
            self.samples.append(shrink(image, self._side))
        if frame.number in self._still:
            self.stills.append(image)


def score_clips(workspace: Workspace, config: ClipsConfig) -> list[Row]:
    """Rows of all clips of the source folder's videos, in order."""
    files = find_sources(workspace, "clips", config, VIDEO_SUFFIXES)
    source = folder_of(config)
    sources = [name_of(path, source) for path in files]
    classifiers = classifier_settings(config)
    settings = {
        **config.model_dump(mode="json", include=_SCORE_FIELDS),
        **classifiers,
        "reader": READER_VERSION,
    }
    folder = workspace.work("clips", "scores")
    tasks = [
        ScoreTask(folder / f"{digest(SIGNED, settings, state_or_missing(source, s))}.parquet", [s])
        for s in sources
    ]
    make = partial(ScoreClips, config, workspace.recipe.run.device)
    weights = (config.quality.clip, config.raft, *classifiers)
    by_weights = any(path is not None for path in weights)
    workspace.run(make, tasks, "clips: scores/video", on_device=by_weights)
    return read_tables(task.out for task in tasks)


def decide_clips(rows: Sequence[Row], config: ClipsConfig, holdout: float | None = None) -> None:
    """Fill `kept` and `reason`, `category: details`, from the scores; the first that holds.

    Args:
        holdout: share of groups of videos whose clips are `held_out`.
    """
    seen: dict[tuple[str, int], str] = {}
    for row in rows:
        row["reason"] = f"unreadable: {row['error']}" if row["error"] else _fault(row, config)
        first = seen.setdefault((row["content"], row["start_frame"]), row["source"])
        if row["reason"] is None and first != row["source"]:
            row["reason"] = f"duplicate: of {first}"
        row["kept"] = row["reason"] is None
    read = [row for row in rows if not row["error"]]
    looks = [row.pop("near", b"") for row in read]
    if holdout is not None:
        hold_out(read, _groups(read, signatures(looks)), holdout)


def _groups(rows: Sequence[Row], looks: np.ndarray) -> np.ndarray:
    """Clips of one video are of one group, and of videos that look alike in the middle of a clip.

    Frames of one colour show nothing.
    """
    shows = np.flatnonzero(contrast(looks) > _SHOWS)
    near = shows[near_pairs(looks[shows], _NEAR_BITS)]
    firsts: dict[str, int] = {}
    same = [(firsts.setdefault(row["content"], i), i) for i, row in enumerate(rows)]
    return group_numbers(len(rows), np.concatenate([np.array(same, int).reshape(-1, 2), near]))


def _fault(row: Row, config: ClipsConfig) -> str | None:
    if (
        row["seconds"] < config.min_seconds
        or row["end_frame"] - row["start_frame"] < TEMPORAL_FACTOR
    ):
        return f"too short: {row['seconds']:.2f} s"
    if min(row["width"], row["height"]) < config.min_side:
        return f"too small: {row['width']}x{row['height']}"
    if row["text_area"] is not None and row["text_area"] > config.max_text:
        return f"too much text: {row['text_area']:.1%}"
    if row["flow"] < config.min_flow:
        return f"too still: flow {row['flow']:.4f}"
    if row["flow"] > config.max_flow:
        return f"too fast: flow {row['flow']:.4f}"
    if row["quality"] < config.min_quality:
        return f"low quality: {row['quality']:.2f}"
    return classifier_fault(row, config)


class WriteClips:
    """Makes documents of encoded clips and their captions."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary

    def __call__(self, task: EncodeTask) -> None:
        documents: list[Document] = []
        skipped: list[Skipped] = []
        for row in task.rows:
            found = attempt(item_name(row), partial(self._documents, row), timed=False)
            if isinstance(found, Failed):
                skipped.append((item_name(row), found.reason))
            else:
                documents += found
        columns = ("content", "start_frame", "end_frame", "captions")
        inputs = inputs_of(task.rows, columns, skipped)
        Part.of(documents, inputs, tuple(skipped)).write(task.out)

    def _documents(self, row: Row) -> list[Document]:
        codes_fhw, fps, seconds = codes_of(row)
        return [
            captioned_clip(self._vocabulary, text, codes_fhw, fps, seconds)
            for text in row["captions"]
        ]
