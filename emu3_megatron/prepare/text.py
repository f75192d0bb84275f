"""Data pipeline of text: byte ranges of files to tokens; of equal texts the first is kept."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from emu3_megatron.config.prepare import TextConfig
from emu3_megatron.data.shards.store import TRAINED
from emu3_megatron.errors import InputError
from emu3_megatron.media.files import (
    File,
    Folder,
    Found,
    UnreadableError,
    name_of,
    path_of,
    reason_of,
    search_source,
    suffix_of,
)
from emu3_megatron.prepare.items import Failed, RunFault, attempt, attempt_each
from emu3_megatron.prepare.near_texts import text_signatures
from emu3_megatron.prepare.parts import HASH_BYTES, Part, Skipped
from emu3_megatron.prepare.personal_data import mask
from emu3_megatron.prepare.streams import (
    LINES_SUFFIXES,
    CutTask,
    Stream,
    WriteCuts,
    compression_of,
    open_plain,
    read_cuts,
)
from emu3_megatron.prepare.text_filters import (
    filter_settings,
    has_scores,
    read_faults,
    score_settings,
)
from emu3_megatron.prepare.workspace import Workspace, digest, folder_of, state_or_missing
from emu3_megatron.vocabulary import Vocabulary, nfc

TEXT_SUFFIXES = LINES_SUFFIXES | {".parquet", ".txt"}

_BOM = "\ufeff"  # that some editors write before a text
_LOOKED_AT = 100  # lines of a file

Decode = Callable[[Any], str]
"""Raises UnicodeError or InputError when there is no text."""


@dataclass(frozen=True)
class Range:
    """A stretch of a file: bytes, or row groups of Parquet; none where they hold no texts."""

    source: str
    start: int
    end: int

    @property
    def name(self) -> str:
        """Of what cannot be read of it; a file's own where it is read from its beginning."""
        if self.start == self.end:
            return self.source
        if self.source.lower().endswith(".parquet"):
            return f"{self.source}: row group {self.start}"
        return f"{self.source}: byte {self.start} and on" if self.start else self.source


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


class TokeniseText:
    """Tokenises the texts of some ranges as documents, in order.

    A part is the same whatever the other ranges hold, so that they can be made anywhere, and parts
    in order are what a loop over the files would have made.
    """

    def __init__(self, config: TextConfig, vocabulary: Vocabulary, strict: bool, signed: bool):
        self._config, self._vocabulary, self._strict = config, vocabulary, strict
        self._signed = signed  # near duplicates are looked for
        self._stream = Stream()
        vocabulary.encoding.check()  # ranks that cannot be read are no fault of the texts

    def __call__(self, task: TextTask) -> None:
        texts: list[np.ndarray] = []
        hashes: list[bytes] = []
        skipped: list[Skipped] = []
        near: list[str] = []
        names: list[str] = []
        origins: dict[str, list[int]] = {}
        for source, where, found in self._texts(task):
            counts = origins.setdefault(source, [0, 0])
            counts[found is None or isinstance(found, Failed)] += 1
            if found is None:
                continue
            if not isinstance(found, Failed):
                texts.append(found[0])
                hashes.append(found[1])
                if self._signed:
                    near.append(found[2])
                    names.append(where)
                continue
            if self._strict:
                raise InputError(
                    f"{where}: {found.reason}; repair it, or let it be set aside without strict"
                )
            skipped.append((where, found.reason))
        part = _part(self._vocabulary, texts, hashes, skipped)
        if self._signed:
            part = replace(part, signatures=text_signatures(near), names=tuple(names))
        files = tuple((source, kept, bad) for source, (kept, bad) in origins.items())
        replace(part, origins=files).write(task.out)

    def _texts(
        self, task: TextTask
    ) -> Iterator[tuple[str, str, tuple[np.ndarray, bytes, str] | Failed | None]]:
        """File of each text, where it stands in it, and its tokens, hash and itself.

        None stands for what filters leave out.
        """
        faults = read_faults(task.scores, self._config)
        for part in task.ranges:
            for found in attempt_each(part.name, read_texts(self._config, part, self._stream)):
                if isinstance(found, Failed):
                    yield part.source, part.name, found
                else:
                    where, decode, data = found
                    if where in faults:
                        yield part.source, where, None
                        continue
                    tokens = partial(self._tokens, decode, data)
                    yield part.source, where, attempt(where, tokens, timed=False)

    def _tokens(self, decode: Decode, data: Any) -> tuple[np.ndarray, bytes, str]:
        text, utf8 = text_of(decode, data, self._config.min_characters)
        if self._config.mask:
            text, _ = mask(text, self._config.mask)
            utf8 = text.encode()
        hashed = hashlib.blake2b(utf8, digest_size=HASH_BYTES).digest()
        return self._vocabulary.encode(text), hashed, text


def text_of(decode: Decode, data: Any, min_characters: int) -> tuple[str, bytes]:
    """A text in NFC, and its UTF-8. Raises InputError when there is none, or too little."""
    try:
        text = nfc(decode(data).removeprefix(_BOM))
        utf8 = text.encode()  # a lone surrogate, which JSON can spell, is no text
    except UnicodeError:
        raise InputError("not UTF-8 text") from None
    if len(text.strip()) < min_characters:
        raise InputError(f"{len(text.strip())} characters, too short")
    return text, utf8


def _part(
    vocabulary: Vocabulary, texts: list[np.ndarray], hashes: list[bytes], skipped: list[Skipped]
) -> Part:
    """Documents of texts, all at once: as `grammar.plain_text` lays out each, BOS text EOS."""
    bos, eos = np.array([vocabulary.bos], np.int32), np.array([vocabulary.eos], np.int32)
    tokens = [piece for text in texts for piece in (bos, text, eos)]
    every_hash = b"".join(hashes)
    return Part(
        tokens=np.concatenate([np.empty(0, np.int32), *tokens]),
        lengths=np.array([2 + len(text) for text in texts], np.int32),
        modes=np.full(len(texts), TRAINED, np.int8),
        spans=np.ones(len(texts), np.int32),
        hashes=np.frombuffer(every_hash, np.uint8).reshape(-1, HASH_BYTES),
        inputs=hashlib.blake2b(every_hash, digest_size=HASH_BYTES).hexdigest(),
        skipped=tuple(skipped),
    )


def read_texts(
    config: TextConfig, part: Range, stream: Stream
) -> Iterator[tuple[str, Decode, Any]]:
    """Where each text of a range stands, and what makes a text of what stands there.

    A text is a line of .jsonl, a value of .parquet, or a whole .txt.

    Args:
        stream: by which a compressed file is read, one range after another.
    """
    folder = folder_of(config)
    path: File
    if isinstance(folder, Path) and not folder.is_dir():
        path = folder
    else:
        path = path_of(folder, part.source)
    suffix = suffix_of(path)
    if suffix == ".parquet":
        for where, value in _row_groups(path, config.column, part):
            yield where, partial(_checked, config.column), value
    elif suffix in LINES_SUFFIXES:
        decode = partial(_json_field, config.column)
        for offset, line in _lines(path, part, stream):
            yield f"{part.source}:byte {offset}", decode, line
    else:
        yield part.source, bytes.decode, path.read_bytes()


def _lines(path: File, part: Range, stream: Stream) -> Iterator[tuple[int, bytes]]:
    if compression_of(path):
        yield from stream.lines(path, part.start, part.end)
        return
    with path.open("rb") as file:
        yield from lines_between(file, part.start, part.end)


def _json_field(column: str, line: bytes) -> str:
    text = line.decode().removeprefix(_BOM)
    try:
        return _checked(column, json.loads(text)[column])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"not JSON with a text in {column!r}") from None


def _checked(column: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"no text in {column!r}")
    return value


def lines_between(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Lines that begin in [start, end) of a file, with their offset; empty ones are left out."""
    offset = start
    if start:
        file.seek(start - 1)
        offset += len(file.readline()) - 1  # the rest of a line that began before, or its end
    while offset < end and (line := file.readline()):
        if not line.isspace():
            yield offset, line
        offset += len(line)


def _row_groups(path: File, column: str, part: Range) -> Iterator[tuple[str, str]]:
    file = _open_parquet(path)
    if column not in file.schema_arrow.names:
        names = ", ".join(file.schema_arrow.names)
        raise UnreadableError(str(path), f"no column {column!r}; it has {names}")
    for group in range(part.start, part.end):
        try:
            values = file.read_row_group(group, columns=[column]).column(column).to_pylist()
        except RunFault:
            raise
        except Exception as error:  # pyarrow raises what the damage leads it to
            rows = file.metadata.row_group(group).num_rows
            raise UnreadableError(
                str(path), f"damaged ({reason_of(error)}); its {rows:,} texts are left out"
            ) from None
        for row, value in enumerate(values):
            yield f"{part.source}: row group {group}, row {row}", value


def _open_parquet(path: File) -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path.open("rb"))  # Arrow takes no name that is not UTF-8
    except RunFault:
        raise
    except Exception as error:  # pyarrow raises what the damage leads it to
        reason = f"not a readable Parquet file ({reason_of(error)})"
        raise UnreadableError(str(path), reason) from None


def refuse_missing_column(config: TextConfig) -> None:
    """Raises InputError when no file of Parquet, and no .jsonl in its first lines, has the column.

    Where some have it, the others are set aside as they are read.
    """
    lacking: dict[File, set[str]] = {}
    for path in search_texts(folder_of(config)).paths:
        found: set[str] = set()
        if suffix_of(path) == ".parquet":
            with contextlib.suppress(Exception):  # is told where it is read
                found = set(_open_parquet(path).schema_arrow.names)
        elif suffix_of(path) in LINES_SUFFIXES:
            found = _columns_of_lines(path)
        if config.column in found:
            return
        if found:
            lacking[path] = found
    for path, found in lacking.items():
        raise InputError(
            f"{path}: no column {config.column!r}; it has {', '.join(sorted(found))}: name "
            "yours in text.column"
        )


def _columns_of_lines(path: File) -> set[str]:
    """Of the first lines; none where one of them has other faults."""
    found: set[str] = set()
    try:
        with open_plain(path) as file:
            for line in itertools.islice(file, _LOOKED_AT):
                if not line.isspace():
                    found |= json.loads(line.decode().removeprefix(_BOM)).keys()
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return set()
    return found


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


def search_texts(source: Folder) -> Found[Any]:
    """The files of texts: all of a folder, or the one that is named."""
    return search_source(source, TEXT_SUFFIXES)


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
        file = _open_parquet(path)
        is_readable = column in file.schema_arrow.names
    except UnreadableError:
        is_readable = False
    if not is_readable:
        yield Range(source, 0, 0), path.stat().st_size  # reading it says why
        return
    metadata = file.metadata
    for group in range(metadata.num_row_groups):
        yield Range(source, group, group + 1), metadata.row_group(group).total_byte_size


def tokenise(
    config: TextConfig, vocabulary: Vocabulary, strict: bool, signed: bool
) -> partial[TokeniseText]:
    return partial(TokeniseText, config, vocabulary, strict, signed)
