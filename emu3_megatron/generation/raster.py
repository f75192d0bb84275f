"""The grammar as a constraint: which tokens may come next in a sequence."""

from collections.abc import Iterable
from enum import Enum

import numpy as np

from emu3_megatron.grammar import GrammarError, Meta
from emu3_megatron.vocabulary import Vocabulary


class Choice(Enum):
    """What there is to choose from where the grammar leaves a choice."""

    TEXT = "text, EOS or BOI"
    META = "text"
    WHOLE_META = "text, or IMG, for what stands after BOI is a grid size"
    CODE = "any visual code"

    def ids(self, vocabulary: Vocabulary) -> np.ndarray:
        """The tokens to choose from, int64 [n], ascending."""
        if self is Choice.CODE:
            return np.arange(vocabulary.first_code, vocabulary.size)
        specials = {
            Choice.TEXT: [vocabulary.eos, vocabulary.vision_start],
            Choice.META: [],
            Choice.WHOLE_META: [vocabulary.codes_follow],
        }
        text = np.arange(vocabulary.num_text)
        return np.append(text, np.array(specials[self], np.int64))


class Raster:
    """Reads a sequence token by token and knows what may follow.

    Right for every grid, for clips, for several images in one sequence, and from any point inside
    an image on. A sequence that only says what is allowed is one that `grammar.parse` accepts.

    Attributes:
        allowed: what may come next: a choice, or the one token that must (EOL after each row, EOF
            after each frame, EOI).
    """

    def __init__(self, vocabulary: Vocabulary, tokens: Iterable[int] = ()):
        self.vocabulary = vocabulary
        self.allowed: Choice | int = Choice.TEXT
        self._meta_text: list[int] = []
        self._meta = Meta(1, 1)
        self._read = 0  # tokens since IMG
        for token in tokens:
            self.feed(int(token))

    def feed(self, token: int) -> None:
        """Read the next token.

        Outside vision any special token that lays out no vision passes, as prompts begin with BOS.

        Raises:
            GrammarError: it is not what may come here, or it is an IMG after no grid size.
        """
        if isinstance(self.allowed, int):
            self._feed_forced(token, self.allowed)
        elif self.allowed is Choice.CODE:
            self._feed_code(token)
        elif self.allowed is Choice.TEXT:
            self._feed_text(token)
        else:
            self._feed_meta(token)

    def ahead(self, count: int) -> list[int | None]:
        """The next tokens inside a grid, at most `count`, to its EOI: those that must come, or None
        for a code.
        """
        upcoming: list[int | None] = []
        for read in range(self._read, self._read + count):
            allowed = self._inside_grid(read)
            upcoming.append(allowed if isinstance(allowed, int) else None)
            if allowed == self.vocabulary.vision_end:
                break
        return upcoming

    def pass_code(self) -> None:
        """Read a code whose value is not known yet."""
        assert self.allowed is Choice.CODE
        self._read += 1
        self.allowed = self._inside_grid(self._read)

    def _feed_text(self, token: int) -> None:
        if token == self.vocabulary.vision_start:
            self._meta_text = []
            self.allowed = Choice.META
        elif token >= self.vocabulary.first_code or token in self.vocabulary.structure:
            raise GrammarError(f"token {token}: codes or their structure outside BOI … EOI")

    def _feed_meta(self, token: int) -> None:
        if token == self.vocabulary.codes_follow:
            self._meta = Meta.parse(self.vocabulary.decode(self._meta_text))
            self._read = 0
            self.allowed = Choice.CODE
        elif token < self.vocabulary.num_text:
            self._meta_text.append(token)
            self.allowed = Choice.WHOLE_META if self._is_meta_whole() else Choice.META
        else:
            raise GrammarError(f"token {token} between BOI and IMG, where a grid size belongs")

    def _is_meta_whole(self) -> bool:
        try:
            Meta.parse(self.vocabulary.decode(self._meta_text))
        except GrammarError:
            return False
        return True

    def _feed_code(self, token: int) -> None:
        if not self.vocabulary.first_code <= token < self.vocabulary.size:
            raise GrammarError(f"token {token} where a code of a {self._meta} grid belongs")
        self.pass_code()

    def _feed_forced(self, token: int, forced: int) -> None:
        if token != forced:
            raise GrammarError(f"token {token} where a {self._meta} grid has token {forced}")
        self._read += 1
        ended = token == self.vocabulary.vision_end
        self.allowed = Choice.TEXT if ended else self._inside_grid(self._read)

    def _inside_grid(self, read: int) -> Choice | int:
        """What follows `read` tokens after IMG."""
        row = self._meta.width + 1
        frame = self._meta.height * row + 1
        frames_read, offset = divmod(read, frame)
        if frames_read == self._meta.frames:
            return self.vocabulary.vision_end
        if offset == frame - 1:
            return self.vocabulary.end_of_frame
        if offset % row == row - 1:
            return self.vocabulary.end_of_line
        return Choice.CODE
