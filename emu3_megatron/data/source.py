"""The interface of sources, which give rows of pieces of documents by number."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np


class Piece(NamedTuple):
    """A stretch of a document inside a row.

    Attributes:
        tokens: int32 [n].
        context: which of them are context and never trained, bool [n]; None: none is.
        source: name of the shard.
        document: number inside the shard.
        start: the piece's first token inside the document.
        group: of documents that belong together, which group of the shard.
        side: which document of its group: of a pair 0 the chosen one, 1 the rejected.
        columns: further numbers of each token by name, float32 [n] each: see `data.columns`.
    """

    tokens: np.ndarray
    context: np.ndarray | None
    source: str
    document: int
    start: int = 0
    group: int | None = None
    side: int | None = None
    columns: Mapping[str, np.ndarray] = MappingProxyType({})


class Source(Protocol):
    """Rows of one context. A worker process gets a source by fork.

    A third party's is a class with `Config`, a SourceSection; it is called with its section and the
    vocabulary, and a recipe names it as `kind: package.module:Name`. `str(source)` names it in
    messages. One whose documents come in groups, whole and side by side in a row, says how many a
    group has in its attribute `group`.

    Attributes:
        context: tokens a row takes.
        content: hash of what the source holds. A run knows a source by it: the order of its rows
            and what it has given so far follow it, wherever the source lies.
    """

    context: int
    content: str

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def row(self, index: int) -> list[Piece]:
        """The pieces of a row in order; together at most `context` tokens, at least one."""
        ...
