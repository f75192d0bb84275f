"""Writes the documents of dialogues from their texts and the codes of what they show."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Document, Turn, Vision, dialogue
from emu3_megatron.prepare.codes_files import CodesFile
from emu3_megatron.prepare.dialogues.parsing import Dialogue
from emu3_megatron.prepare.dialogues.tables import read_dialogues
from emu3_megatron.prepare.items import Failed, attempt
from emu3_megatron.prepare.parts import HASH_BYTES, Part, Skipped
from emu3_megatron.vocabulary import SYSTEM_TEXT, Vocabulary

_OPEN_FILES = 64  # of codes


@dataclass(frozen=True)
class RowToWrite:
    """A row of a group.

    Attributes:
        name: `FILE: row NUMBER`, the file by its path inside the source folder.
        place: of the row in its group.
        codes: file and place of the codes of each image and clip.
    """

    name: str
    place: int
    codes: list[tuple[Path, int]]


@dataclass(frozen=True)
class DocumentsTask:
    """Rows of one group of a table that become a part."""

    out: Path
    table: Path
    group: int
    rows: list[RowToWrite]

    @property
    def size(self) -> int:
        return len(self.rows)


class WriteDocuments:
    """Writes a part of rows. One that is too long is left out, or raises with `strict`."""

    def __init__(self, vocabulary: Vocabulary, max_tokens: int, folder: Path, strict: bool):
        self._vocabulary, self._max_tokens = vocabulary, max_tokens
        self._folder, self._strict = folder, strict
        vocabulary.encoding.check()
        self._open: Callable[[Path], CodesFile] = lru_cache(_OPEN_FILES)(CodesFile)

    def __call__(self, task: DocumentsTask) -> None:
        dialogues = read_dialogues(task.table, task.group)
        documents: list[Document] = []
        skipped: list[Skipped] = []
        for row in task.rows:
            found = dialogues[row.place]
            assert found is not None, "rows that cannot be used are no part of a task"
            document = attempt(row.name, partial(self._of_row, row, found), timed=False)
            if not isinstance(document, Failed):
                documents.append(document)
                continue
            reason = document.reason if document.expected else f"unreadable: {document.reason}"
            skipped.append((row.name, reason))
            if self._strict:
                line = f"{self._folder / row.name}: {reason}"
                raise InputError(f"{line}; shorten it, or set odd rows aside with --skip-bad")
        Part.of(documents, _hash(documents), tuple(skipped)).write(task.out)

    def _of_row(self, row: RowToWrite, found: Dialogue) -> Document:
        document = self._document(found, [self._open(path)[place] for path, place in row.codes])
        if len(document) > self._max_tokens:
            raise InputError(_too_long(document, self._max_tokens))
        return document

    def _document(self, found: Dialogue, shown: Sequence[Vision]) -> Document:
        turns = [
            Turn([p if isinstance(p, str) else shown[p] for p in turn.parts], turn.answer)
            for turn in found.turns
        ]
        return dialogue(self._vocabulary, turns, found.system or SYSTEM_TEXT)


def _too_long(document: Document, most: int) -> str:
    return f"too long: {len(document):,} tokens, dialogues.max_tokens={most:,}"


def _hash(documents: Sequence[Document]) -> str:
    found = hashlib.blake2b(digest_size=HASH_BYTES)
    for document in documents:
        for span in document.spans:
            found.update(len(span.tokens).to_bytes(8, "little"))
            found.update(span.tokens.tobytes())
    return found.hexdigest()
