"""Shards of a few documents: by our writer, and by megatron-core's builder."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from emu3_megatron.data.shards.writer import block_of, write_shard
from emu3_megatron.grammar import Document
from emu3_megatron.vocabulary import Vocabulary


def write_documents(
    prefix: Path, vocabulary: Vocabulary, documents: Iterable[Document], group: int | None = None
) -> Path:
    write_shard(prefix, vocabulary, [block_of(list(documents))], group)
    return prefix


def write_by_megatron(prefix: Path, documents: Iterable[Document]) -> Path:
    """`.bin` and `.idx` as megatron-core writes them; there is no sidecar."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder  # takes seconds

    builder = IndexedDatasetBuilder(f"{prefix}.bin", np.int32, multimodal=True)
    for document in documents:
        lengths = [len(span.tokens) for span in document.spans]
        modes = [0 if span.trained else 1 for span in document.spans]
        builder.add_document(document.tokens, lengths, modes)
    builder.finalize(f"{prefix}.idx")
    return prefix
