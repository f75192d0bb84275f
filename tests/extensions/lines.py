"""A source from outside the package: the lines of a text file, a recipe's `extensions.lines:Lines`.

data:
  sources:
    - {kind: extensions.lines:Lines, file: poems.txt, tokens: 64}
"""

import hashlib
from pathlib import Path

from emu3_megatron.config.base import REQUIRED, free, semantic
from emu3_megatron.config.data import SourceSection
from emu3_megatron.data.source import Piece
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import plain_text
from emu3_megatron.vocabulary import Vocabulary


class Lines:
    """Each line is a row."""

    class Config(SourceSection):
        file: Path = free(REQUIRED, "of text")
        tokens: int = semantic(REQUIRED, "a row takes; longer lines are cut")

    def __init__(self, section: Config, vocabulary: Vocabulary):
        if not section.file.is_file():
            raise InputError(f"{section.file}: no such file")
        self.path, self.vocabulary = section.file, vocabulary
        self.lines = section.file.read_text().splitlines()
        self.context = section.tokens
        self.content = hashlib.sha256("\n".join(self.lines).encode()).hexdigest()

    def __str__(self) -> str:
        return str(self.path)

    def __len__(self) -> int:
        return len(self.lines)

    def row(self, index: int) -> list[Piece]:
        tokens = plain_text(self.vocabulary, self.lines[index]).tokens[: self.context]
        return [Piece(tokens, None, self.path.name, index)]
