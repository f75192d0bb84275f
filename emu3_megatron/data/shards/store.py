"""Reads token shards: PREFIX.bin and PREFIX.idx, which stock megatron-core opens, and PREFIX.json.

A document is one Megatron document, each of its spans one sequence, and the sequence's mode byte
the span's role. docs/format.md has the layout.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from emu3_megatron.data.mapping import map_file
from emu3_megatron.data.shards.index import TOKEN_BYTES, Index, check_index, map_index
from emu3_megatron.data.shards.sidecar import Sidecar, shard_file
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Document, Span
from emu3_megatron.vocabulary import Vocabulary

TRAINED, CONTEXT = 0, 1  # sequence modes
_RUN = 1 << 14  # consecutive tokens looked at together


class TokenStore:
    """Documents of a shard, read through a memory map; it can be forked and pickled.

    Opening checks sizes, the index, the vocabulary and, on tokens spread evenly over the file,
    that ids lie inside the vocabulary. Shards that Megatron wrote have no sidecar until they are
    packed.

    Args:
        prefix: path of the shard without `.bin`.
        vocabulary: the one its ids belong to.
        scan: how many tokens to look at while opening.
        relabel: whatever the sidecar says of the vocabulary is wrong.

    Attributes:
        has_context: some span is context.
        sidecar: what PREFIX.json tells; None when there is none.

    Raises:
        InputError: the shard is missing, damaged, or of another vocabulary.
    """

    def __init__(
        self,
        prefix: str | Path,
        vocabulary: Vocabulary,
        scan: int = 1 << 24,
        relabel: bool = False,
    ):
        self.prefix = Path(prefix)
        self.vocabulary = vocabulary
        check_index(shard_file(prefix, "idx"))
        self._check_bin()
        self.sidecar = Sidecar.read(prefix)
        if self.sidecar is not None and relabel:
            self.sidecar = replace(self.sidecar, vocabulary=vocabulary.fingerprint())
        if self.sidecar is not None:
            self.sidecar.check(prefix, vocabulary)
        self._size = vocabulary.size
        self._map()
        self.has_context = bool(self._index.modes.any())
        self._check_sample(scan)

    def _check_bin(self) -> None:
        path = shard_file(self.prefix, "bin")
        expected = map_index(shard_file(self.prefix, "idx")).num_tokens * TOKEN_BYTES
        if not path.is_file():
            raise InputError(f"{path}: no such file beside its .idx; copy it there")
        if (actual := path.stat().st_size) != expected:
            raise InputError(
                f"{path}: {actual:,} bytes, expected {expected:,} by its .idx; "
                "copy it again or make the shard anew"
            )
        if expected == 0:
            raise InputError(f"{path}: holds no tokens; leave the shard out")

    def _map(self) -> None:
        self._index = map_index(shard_file(self.prefix, "idx"))
        self._tokens = map_file(shard_file(self.prefix, "bin"), np.int32)
        # As unsigned numbers negative ids are large: one comparison finds both kinds.
        self._unsigned = self._tokens.view(np.uint32)

    def __getstate__(self) -> dict[str, Any]:
        mapped = ("_index", "_tokens", "_unsigned")
        return {name: value for name, value in self.__dict__.items() if name not in mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def __len__(self) -> int:
        """Number of documents."""
        return len(self._index.first_sequences) - 1

    @property
    def name(self) -> str:
        """The prefix: shards of several folders may share their last part."""
        return str(self.prefix)

    @property
    def num_tokens(self) -> int:
        return len(self._tokens)

    @property
    def group(self) -> int | None:
        """So many documents in a row belong together: 2 for pairs. None: each stands alone."""
        return self.sidecar.group if self.sidecar else None

    @property
    def index(self) -> Index:
        """Spans and documents, memory-mapped."""
        return self._index

    @property
    def document_lengths(self) -> np.ndarray:
        """Tokens of each document, int64 [documents]."""
        return np.diff(self._first_tokens(), append=self.num_tokens)

    def _first_tokens(self) -> np.ndarray:
        first_sequences = self._index.first_sequences[:-1]
        # Documents without sequences that come last begin where the tokens end.
        some = first_sequences < len(self._index.pointers)
        first_tokens = np.full(len(first_sequences), self.num_tokens, np.int64)
        first_tokens[some] = self._index.pointers[first_sequences[some]] // TOKEN_BYTES
        return first_tokens

    def is_text(self) -> np.ndarray:
        """Which documents are a single span of text, bool [documents]."""
        single = np.diff(self._index.first_sequences) == 1
        starts = np.minimum(self._first_tokens(), self.num_tokens - 1)
        single[single] = self._tokens[starts[single]] != self.vocabulary.vision_start
        return single

    def span_heads(self) -> np.ndarray:
        """The first token of each span of all documents, int32 [spans]; of an empty one any."""
        starts = np.minimum(self._index.pointers // TOKEN_BYTES, self.num_tokens - 1)
        return self._tokens[starts]

    def spans(self, document: int) -> tuple[np.ndarray, np.ndarray]:
        """Lengths int32 [spans] and modes int8 [spans] of a document."""
        first, end = self._index.first_sequences[document : document + 2]
        return self._index.lengths[first:end], self._index.modes[first:end]

    def read(self, document: int, start: int = 0, length: int | None = None) -> np.ndarray:
        """Tokens of a document, or `length` of them from `start`: an int32 view of the file.

        Raises:
            InputError: an id lies outside the vocabulary.
        """
        index = self._index
        # `item` is the quickest way to a single number.
        first_sequence = index.first_sequences.item(document)
        last = index.first_sequences.item(document + 1) - 1
        if last < first_sequence:  # a document of Megatron's without sequences
            return self._tokens[:0]
        first = index.pointers.item(first_sequence) // TOKEN_BYTES
        end = index.pointers.item(last) // TOKEN_BYTES + index.lengths.item(last)
        begin = first + start
        stop = end if length is None else begin + length
        assert first <= begin <= stop <= end, "a piece reaches beyond its document"
        if not self._is_inside(begin, stop):
            self._refuse(begin)
        return self._tokens[begin:stop]

    def tokens_at(self, positions: np.ndarray) -> np.ndarray:
        """The tokens at these places of the file, int32 [n]; unchecked."""
        return self._tokens[positions]

    def document(self, document: int) -> Document:
        """A document with its spans, as it was written."""
        lengths, modes = self.spans(document)
        pieces = np.split(self.read(document), np.cumsum(lengths)[:-1])[: len(lengths)]
        return Document(tuple(Span(p, m == TRAINED) for p, m in zip(pieces, modes, strict=True)))

    def check_all(self) -> Sidecar:
        """Read every token; returns what the shard holds.

        Raises:
            InputError: an id outside the vocabulary, or not the content its sidecar tells of.
        """
        data, index = (shard_file(self.prefix, suffix) for suffix in ("bin", "idx"))
        found = Sidecar.describe(data, index, self.vocabulary)
        if found.smallest_id < 0 or found.largest_id >= self.vocabulary.size:
            self._refuse(0)
        if self.sidecar is not None:
            found = replace(found, group=self.sidecar.group)  # which no token tells
        if self.sidecar not in (None, found):
            raise InputError(
                f"{data}: not the content its .json was written for; copy the shard again"
            )
        return found

    def _check_sample(self, tokens: int) -> None:
        runs = max(1, min(tokens, self.num_tokens) // _RUN)
        for begin in np.linspace(0, max(0, self.num_tokens - _RUN), runs, dtype=np.int64):
            if not self._is_inside(int(begin), int(begin) + _RUN):
                self._refuse(int(begin))

    def _is_inside(self, begin: int, end: int) -> bool:
        # argmax is the reduction of numpy's with the least overhead.
        ids = self._unsigned[begin:end]
        return len(ids) == 0 or ids.item(ids.argmax()) < self._size

    def _refuse(self, begin: int) -> NoReturn:
        """Name the first bad id at or after token `begin`."""
        position = begin
        while self._is_inside(position, position + _RUN):
            position += _RUN
        run = self._unsigned[position : position + _RUN]
        position += int(np.argmax(run >= self._size))
        document = int(np.searchsorted(self._first_tokens(), position, "right")) - 1
        raise InputError(
            f"{shard_file(self.prefix, 'bin')}: document {document} holds id "
            f"{self._tokens[position]}, the vocabulary has {self._size:,}; "
            "use the vocabulary it was written with, or make the shard anew"
        )
