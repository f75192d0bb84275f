"""Writing token shards, through megatron-core's own builder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from emu3_megatron.data.shards.sidecar import Content, Sidecar, shard_file
from emu3_megatron.data.shards.store import CONTEXT, TRAINED, TokenStore
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing
from emu3_megatron.grammar import Document
from emu3_megatron.vocabulary import Vocabulary


@contextmanager
def store_writer(prefix: str | Path, vocabulary: Vocabulary) -> Iterator["TokenWriter"]:
    """Write a shard: PREFIX.bin, .idx and .json appear together when the block ends well.

    An exception leaves what was there before. The .idx comes last, so that a shard with an .idx is
    a whole one.

    Raises:
        InputError: no document was added.
    """
    index, data, sidecar = (shard_file(prefix, suffix) for suffix in ("idx", "bin", "json"))
    # Renamed in reverse order: .bin, .json, .idx.
    with (
        replacing(index) as new_index,
        replacing(sidecar) as new_sidecar,
        replacing(data) as new_data,
    ):
        writer = TokenWriter(new_data, vocabulary)
        try:
            yield writer
            if writer.documents == 0:
                raise InputError(f"{prefix}: no documents to write")
            writer.finish(new_index)
        finally:
            writer.close()
        new_sidecar.write_text(writer.content.sidecar(new_index, vocabulary).to_json())
        index.unlink(missing_ok=True)  # never an old index beside new tokens


class TokenWriter:
    """What `store_writer` yields.

    Attributes:
        documents, tokens: added so far.
        content: of them.
    """

    def __init__(self, data: Path, vocabulary: Vocabulary):
        # Importing megatron-core takes seconds; readers need nothing of it.
        from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

        self.documents = self.tokens = 0
        self.content = Content()
        self._vocabulary = vocabulary
        self._builder = IndexedDatasetBuilder(str(data), np.int32, multimodal=True)

    def add(self, document: Document) -> None:
        """Append a document. Raises InputError on an id outside the vocabulary or no tokens."""
        spans = [span for span in document.spans if len(span.tokens)]
        if not spans:
            raise InputError(f"document {self.documents}: no tokens")
        tokens = np.concatenate([span.tokens for span in spans])
        if tokens.min() < 0 or tokens.max() >= self._vocabulary.size:
            raise InputError(
                f"document {self.documents}: ids {tokens.min()}..{tokens.max()} leave the "
                f"vocabulary of {self._vocabulary.size:,}"
            )
        modes = [TRAINED if span.trained else CONTEXT for span in spans]
        self._builder.add_document(tokens, [len(span.tokens) for span in spans], modes)
        self.content.add(tokens)
        self.documents += 1
        self.tokens += len(tokens)

    def finish(self, index: Path) -> None:
        """Close the tokens and write the index."""
        self._builder.finalize(str(index))

    def close(self) -> None:
        self._builder.data_file.close()


def adopt(store: TokenStore) -> Sidecar:
    """The sidecar of a shard; one that Megatron wrote is read through and given its own.

    Raises:
        InputError: an id lies outside the vocabulary.
    """
    if store.sidecar is None:
        store.sidecar = store.check_all()
        with replacing(shard_file(store.prefix, "json")) as path:
            path.write_text(store.sidecar.to_json())
    return store.sidecar
