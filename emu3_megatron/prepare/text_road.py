"""Text: byte ranges of files to tokens, in all cores; what is the same text is kept once."""

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Document, plain_text
from emu3_megatron.prepare.parts import HASH_BYTES, Part
from emu3_megatron.prepare.recipe import TextConfig
from emu3_megatron.prepare.sources import find_files
from emu3_megatron.prepare.workspace import Workspace, digest, file_state
from emu3_megatron.vocabulary import Vocabulary

TEXT_SUFFIXES = frozenset({".jsonl", ".parquet", ".txt"})


@dataclass(frozen=True)
class Range:
    """A stretch of a file: bytes, or row groups of Parquet."""

    source: str
    start: int
    end: int


@dataclass(frozen=True)
class TextTask:
    """Ranges that become a part; `size` in bytes."""

    out: Path
    ranges: list[Range]
    size: int


class TokeniseText:
    """A stage: texts of some ranges to documents, in order.

    A part is the same whatever the other ranges hold, so that they can be made anywhere, and parts
    in order are what a loop over the files would have made.
    """

    def __init__(self, config: TextConfig, vocabulary: Vocabulary, strict: bool):
        self._config, self._vocabulary, self._strict = config, vocabulary, strict
        vocabulary.encode("a")  # ranks that cannot be read are no fault of the texts

    def __call__(self, task: TextTask) -> None:
        self._documents: list[Document] = []
        self._hashes: list[bytes] = []
        self._skipped: list[str] = []
        inputs = hashlib.blake2b(digest_size=HASH_BYTES)
        for part in task.ranges:
            for where, data in read_texts(self._config, part):
                self._add(where, data)
        for value in self._hashes:
            inputs.update(value)
        Part.of(self._documents, inputs.hexdigest(), self._hashes, self._skipped).write(task.out)

    def _add(self, where: str, data: bytes | str) -> None:
        try:
            text = self._text(where, data)
        except (ValueError, KeyError, TypeError) as error:
            line = f"{where}: {_why(error, self._config.column)}"
            if self._strict:
                raise InputError(f"{line}; mend or remove it") from None
            self._skipped.append(line)
            return
        self._hashes.append(hashlib.blake2b(text.encode(), digest_size=HASH_BYTES).digest())
        self._documents.append(plain_text(self._vocabulary, text))

    def _text(self, where: str, data: bytes | str) -> str:
        """The text in NFC. Raises ValueError, KeyError or TypeError when there is none."""
        if isinstance(data, bytes):
            data = data.decode()
        if ".jsonl:" in where:
            data = json.loads(data)[self._config.column]
        if not isinstance(data, str):
            raise TypeError
        text = unicodedata.normalize("NFC", data)
        if len(text.strip()) < self._config.min_characters:
            raise InputError(f"{len(text.strip())} characters, too short")
        text.encode()  # a lone surrogate, which JSON can spell, is no text
        return text


def _why(error: Exception, column: str) -> str:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, UnicodeError):
        return "not UTF-8 text"
    return f"not JSON with a text in {column!r}"


def read_texts(config: TextConfig, part: Range) -> Iterator[tuple[str, bytes | str]]:
    """Where each text of a range stands, and the text: a line of .jsonl, a value, a whole file."""
    path = config.source / part.source if config.source.is_dir() else config.source
    if path.suffix == ".parquet":
        yield from _row_groups(path, config.column, part)
    elif path.suffix == ".jsonl":
        with path.open("rb") as file:
            for offset, line in lines_between(file, part.start, part.end):
                yield f"{part.source}:byte {offset}", line
    else:
        yield part.source, path.read_bytes()


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


def _row_groups(path: Path, column: str, part: Range) -> Iterator[tuple[str, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        for group in range(part.start, part.end):
            values = file.read_row_group(group, columns=[column]).column(column)
            for row, value in enumerate(values.to_pylist()):
                yield f"{part.source}: row group {group}, row {row}", value
    except (OSError, KeyError, pa.ArrowException) as error:
        raise InputError(f"{path}: no column {column!r} can be read ({error})") from None


def text_tasks(workspace: Workspace, config: TextConfig, settings: str) -> list[TextTask]:
    """Ranges of all files, in order, about `range_bytes` a task."""
    source = config.source
    folder = source if source.is_dir() else source.parent
    paths = find_files(source, TEXT_SUFFIXES) if source.is_dir() else [source]
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    tasks: list[TextTask] = []
    waiting: list[tuple[Range, int]] = []
    for path in paths:
        for found in _ranges(path, path.relative_to(folder).as_posix(), config.range_bytes):
            waiting.append(found)
            if sum(size for _, size in waiting) >= config.range_bytes:
                tasks.append(_task(workspace, folder, waiting, config, settings))
                waiting = []
    if waiting:
        tasks.append(_task(workspace, folder, waiting, config, settings))
    return tasks


def _task(
    workspace: Workspace,
    folder: Path,
    found: Sequence[tuple[Range, int]],
    config: TextConfig,
    settings: str,
) -> TextTask:
    ranges = [part for part, _ in found]
    states = [(file_state(folder, part.source), part.start, part.end) for part in ranges]
    name = digest(settings, states, config.column, config.min_characters)
    out = workspace.work("text", "parts") / f"{name}.npz"
    return TextTask(out, ranges, sum(size for _, size in found))


def _ranges(path: Path, source: str, range_bytes: int) -> Iterator[tuple[Range, int]]:
    size = path.stat().st_size
    if path.suffix == ".parquet":
        yield from _parquet_ranges(path, source)
    elif path.suffix == ".jsonl":
        for start in range(0, size, range_bytes):
            end = min(size, start + range_bytes)
            yield Range(source, start, end), end - start
    else:
        yield Range(source, 0, size), size


def _parquet_ranges(path: Path, source: str) -> Iterator[tuple[Range, int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.ParquetFile(path).metadata
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error})") from None
    for group in range(metadata.num_row_groups):
        yield Range(source, group, group + 1), metadata.row_group(group).total_byte_size


def tokenise(config: TextConfig, vocabulary: Vocabulary, strict: bool) -> partial[TokeniseText]:
    return partial(TokeniseText, config, vocabulary, strict)
