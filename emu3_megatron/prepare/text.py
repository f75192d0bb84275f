"""Data pipeline of text: byte ranges of files to tokens; of equal texts the first is kept."""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from emu3_megatron.config.prepare import TextConfig
from emu3_megatron.data.shards.store import TRAINED
from emu3_megatron.errors import InputError
from emu3_megatron.media.files import UnreadableError, find_files, name_of, path_of, reason_of
from emu3_megatron.prepare.items import Failed, attempt, attempt_each
from emu3_megatron.prepare.near_texts import text_signatures
from emu3_megatron.prepare.parts import HASH_BYTES, Part, Skipped
from emu3_megatron.prepare.workspace import Workspace, digest, state_or_missing
from emu3_megatron.vocabulary import Vocabulary, nfc

TEXT_SUFFIXES = frozenset({".jsonl", ".parquet", ".txt"})

_BOM = "\ufeff"  # that some editors write before a text
_LOOKED_AT = 100  # lines of a file of .jsonl

Decode = Callable[[Any], str]
"""Raises UnicodeError or InputError when there is no text."""


@dataclass(frozen=True)
class Range:
    """A stretch of a file: bytes, or row groups of Parquet; none where its footer is damaged."""

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
    """Ranges that become a part; `size` in bytes."""

    out: Path
    ranges: list[Range]
    size: int


class TokeniseText:
    """Tokenises the texts of some ranges as documents, in order.

    A part is the same whatever the other ranges hold, so that they can be made anywhere, and parts
    in order are what a loop over the files would have made.
    """

    def __init__(self, config: TextConfig, vocabulary: Vocabulary, strict: bool, signed: bool):
        self._config, self._vocabulary, self._strict = config, vocabulary, strict
        self._signed = signed  # near duplicates are looked for
        vocabulary.encoding.check()  # ranks that cannot be read are no fault of the texts

    def __call__(self, task: TextTask) -> None:
        texts: list[np.ndarray] = []
        hashes: list[bytes] = []
        skipped: list[Skipped] = []
        near: list[str] = []
        names: list[str] = []
        for where, found in self._texts(task):
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
        part.write(task.out)

    def _texts(
        self, task: TextTask
    ) -> Iterator[tuple[str, tuple[np.ndarray, bytes, str] | Failed]]:
        """Where each text stands, and its tokens, hash and itself."""
        for part in task.ranges:
            for found in attempt_each(part.name, read_texts(self._config, part)):
                if isinstance(found, Failed):
                    yield part.name, found
                else:
                    where, decode, data = found
                    yield where, attempt(where, partial(self._tokens, decode, data), timed=False)

    def _tokens(self, decode: Decode, data: Any) -> tuple[np.ndarray, bytes, str]:
        text, utf8 = self._text(decode, data)
        hashed = hashlib.blake2b(utf8, digest_size=HASH_BYTES).digest()
        return self._vocabulary.encode(text), hashed, text

    def _text(self, decode: Decode, data: Any) -> tuple[str, bytes]:
        """A text in NFC, and its UTF-8. Raises InputError when there is none, or too little."""
        try:
            text = nfc(decode(data).removeprefix(_BOM))
            utf8 = text.encode()  # a lone surrogate, which JSON can spell, is no text
        except UnicodeError:
            raise InputError("not UTF-8 text") from None
        if len(text.strip()) < self._config.min_characters:
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


def read_texts(config: TextConfig, part: Range) -> Iterator[tuple[str, Decode, Any]]:
    """Where each text of a range stands, and what makes a text of what stands there.

    A text is a line of .jsonl, a value of .parquet, or a whole .txt.
    """
    path = path_of(config.source, part.source) if config.source.is_dir() else config.source
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        for where, value in _row_groups(path, config.column, part):
            yield where, partial(_checked, config.column), value
    elif suffix == ".jsonl":
        decode = partial(_json_field, config.column)
        with path.open("rb") as file:
            for offset, line in lines_between(file, part.start, part.end):
                yield f"{part.source}:byte {offset}", decode, line
    else:
        yield part.source, bytes.decode, path.read_bytes()


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


def _row_groups(path: Path, column: str, part: Range) -> Iterator[tuple[str, str]]:
    file = _open_parquet(path)
    if column not in file.schema_arrow.names:
        raise UnreadableError(path, f"no column {column!r}")
    for group in range(part.start, part.end):
        try:
            values = file.read_row_group(group, columns=[column]).column(column).to_pylist()
        except Exception as error:  # pyarrow raises what the damage leads it to
            rows = file.metadata.row_group(group).num_rows
            raise UnreadableError(
                path, f"damaged ({reason_of(error)}); its {rows:,} texts are left out"
            ) from None
        for row, value in enumerate(values):
            yield f"{part.source}: row group {group}, row {row}", value


def _open_parquet(path: Path) -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except Exception as error:  # pyarrow raises what the damage leads it to
        raise UnreadableError(path, f"not a readable Parquet file ({reason_of(error)})") from None


def refuse_missing_column(config: TextConfig) -> None:
    """Raises InputError when a file of Parquet, or all first lines of a .jsonl, lack the column."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in _files(config.source)[1]:
        found: set[str] = set()
        if path.suffix.lower() == ".parquet":
            with contextlib.suppress(OSError, pa.ArrowException):  # is told where it is read
                found = set(pq.read_schema(path).names)
        elif path.suffix.lower() == ".jsonl":
            found = _columns_of_lines(path)
        if found and config.column not in found:
            raise InputError(
                f"{path}: no column {config.column!r}; it has {', '.join(sorted(found))}: name "
                "yours in text.column"
            )


def _columns_of_lines(path: Path) -> set[str]:
    """Of the first lines; none where one of them has other faults."""
    found: set[str] = set()
    with path.open("rb") as file:
        for line in itertools.islice(file, _LOOKED_AT):
            if line.isspace():
                continue
            try:
                found |= json.loads(line.decode().removeprefix(_BOM)).keys()
            except (ValueError, AttributeError, RecursionError):
                return set()
    return found


def text_tasks(workspace: Workspace, config: TextConfig, settings: str) -> list[TextTask]:
    """Ranges of all files, in order, about `range_bytes` a task."""
    folder, paths = _files(config.source)
    found = (
        pair for path in paths for pair in _ranges(path, name_of(path, folder), config.range_bytes)
    )
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


def _files(source: Path) -> tuple[Path, list[Path]]:
    """The folder, and the files in it: all of a folder, or the one that is named."""
    if source.is_dir():
        return source, find_files(source, TEXT_SUFFIXES)
    if not source.is_file():
        raise InputError(f"{source}: no such file or folder")
    if source.suffix.lower() not in TEXT_SUFFIXES:
        raise InputError(f"{source}: ends in none of {', '.join(sorted(TEXT_SUFFIXES))}")
    return source.parent, [source]


def _task(
    workspace: Workspace,
    folder: Path,
    ranges: list[Range],
    size: int,
    config: TextConfig,
    settings: str,
) -> TextTask:
    states = [(state_or_missing(folder, part.source), part.start, part.end) for part in ranges]
    name = digest(settings, states, config.column, config.min_characters)
    out = workspace.work("text", "parts") / f"{name}.npz"
    return TextTask(out, ranges, size)


def _ranges(path: Path, source: str, range_bytes: int) -> Iterator[tuple[Range, int]]:
    size = path.stat().st_size
    if path.suffix.lower() == ".parquet":
        yield from _parquet_ranges(path, source)
    elif path.suffix.lower() == ".jsonl":
        for start in range(0, size, range_bytes):
            end = min(size, start + range_bytes)
            yield Range(source, start, end), end - start
    else:
        yield Range(source, 0, size), size


def _parquet_ranges(path: Path, source: str) -> Iterator[tuple[Range, int]]:
    try:
        metadata = _open_parquet(path).metadata
    except UnreadableError:
        yield Range(source, 0, 0), path.stat().st_size  # reading it says why
        return
    for group in range(metadata.num_row_groups):
        yield Range(source, group, group + 1), metadata.row_group(group).total_byte_size


def tokenise(
    config: TextConfig, vocabulary: Vocabulary, strict: bool, signed: bool
) -> partial[TokeniseText]:
    return partial(TokeniseText, config, vocabulary, strict, signed)
