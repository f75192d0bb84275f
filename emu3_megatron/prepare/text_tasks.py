"""Cuts files of texts into ranges, and ranges into tasks."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from emu3_megatron.config.prepare import TextConfig
from emu3_megatron.media.files import (
    File,
    Folder,
    UnreadableError,
    name_of,
    suffix_of,
)
from emu3_megatron.prepare.streams import (
    LINES_SUFFIXES,
    CutTask,
    WriteCuts,
    compression_of,
    read_cuts,
)
from emu3_megatron.prepare.text_files import Range, open_parquet, search_texts
from emu3_megatron.prepare.text_filters import (
    filter_settings,
    has_scores,
    score_settings,
)
from emu3_megatron.prepare.workspace import Workspace, digest, folder_of, state_or_missing


@dataclass(frozen=True)
class TextTask:
    """Ranges that become a part, or a table of scores; `size` in bytes.

    Attributes:
        scores: table by which texts are left out; None where no filter is on.
    """

    out: Path
    ranges: list[Range]
    size: int
    scores: Path | None = None


def text_tasks(workspace: Workspace, config: TextConfig, settings: str) -> list[TextTask]:
    """Ranges of all files, in order, about `range_bytes` a task."""
    source = folder_of(config)
    folder = source.parent if isinstance(source, Path) and not source.is_dir() else source
    paths = workspace.found("text", search_texts(source)).paths
    cuts = _cut(workspace, config, folder, paths)
    found = (pair for path in paths for pair in _ranges(path, name_of(path, folder), config, cuts))
    tasks: list[TextTask] = []
    waiting: list[Range] = []
    size = 0
    for part, part_bytes in found:
        waiting.append(part)
        size += part_bytes
        if size >= config.range_bytes:
            tasks.append(_task(workspace, folder, waiting, size, config, settings))
            waiting, size = [], 0
    if waiting:
        tasks.append(_task(workspace, folder, waiting, size, config, settings))
    return tasks


def _cut(
    workspace: Workspace, config: TextConfig, folder: Folder, paths: Sequence[File]
) -> dict[File, list[int]]:
    """Where ranges of compressed files begin and end: only reading through them tells."""
    work = workspace.work("text", "cuts")
    tasks = [
        CutTask(
            work / f"{digest(state_or_missing(folder, name_of(p, folder)), config.range_bytes)}",
            p,
            p.stat().st_size,
        )
        for p in paths
        if suffix_of(p) in LINES_SUFFIXES and _is_compressed(p)
    ]
    workspace.run(partial(WriteCuts, config.range_bytes), tasks, "text: compressed files/B")
    return {task.path: read_cuts(task.out) for task in tasks}


def _is_compressed(path: File) -> bool:
    with contextlib.suppress(OSError, UnreadableError):  # is told where it is read
        return compression_of(path) is not None
    return False


def _task(
    workspace: Workspace,
    folder: Folder,
    ranges: list[Range],
    size: int,
    config: TextConfig,
    settings: str,
) -> TextTask:
    states = [(state_or_missing(folder, part.source), part.start, part.end) for part in ranges]
    name = digest(settings, states, config.column, config.min_characters, *filter_settings(config))
    out = workspace.work("text", "parts") / f"{name}.npz"
    scores = None
    if has_scores(config):
        name = digest(states, score_settings(config))
        scores = workspace.work("text", "scores") / f"{name}.parquet"
    return TextTask(out, ranges, size, scores)


def _ranges(
    path: File, source: str, config: TextConfig, cuts: Mapping[File, list[int]]
) -> Iterator[tuple[Range, int]]:
    size = path.stat().st_size
    if suffix_of(path) == ".parquet":
        yield from _parquet_ranges(path, source, config.column)
    elif suffix_of(path) in LINES_SUFFIXES:
        edges = cuts.get(path) or [*range(0, size, config.range_bytes), size]
        for start, end in itertools.pairwise(edges):
            yield Range(source, start, end), end - start
    else:
        yield Range(source, 0, size), size


def _parquet_ranges(path: File, source: str, column: str) -> Iterator[tuple[Range, int]]:
    try:
        file = open_parquet(path)
        is_readable = column in file.schema_arrow.names
    except UnreadableError:
        is_readable = False
    if not is_readable:
        yield Range(source, 0, 0), path.stat().st_size  # reading it says why
        return
    metadata = file.metadata
    for group in range(metadata.num_row_groups):
        yield Range(source, group, group + 1), metadata.row_group(group).total_byte_size
