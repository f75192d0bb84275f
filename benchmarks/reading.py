"""Reading sequences of 5,120 tokens in random order from the page cache.

`tokens to tensor` compares like with like: one document to an int64 tensor, by megatron-core's
IndexedDataset and by TokenStore, which checks every id besides. `batch row` is the whole row that
training gets: tokens, labels, weights, positions.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Case, main
from megatron.core.datasets.indexed_dataset import IndexedDataset

from emu3_megatron.data.packing.packs import PackSet, pack_shards
from emu3_megatron.data.rows import RowBuilder
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.data.shards.writer import Block, write_shard
from emu3_megatron.vocabulary import CLASS_WEIGHTS, Vocabulary

CONTEXT = 5120
DOCUMENTS_A_PACK = (1, 8)


def write_packs(folder: Path, samples: int, documents_a_pack: int) -> tuple[TokenStore, PackSet]:
    """A shard of random tokens of Emu3's vocabulary that packs fill to the last token."""
    vocabulary = Vocabulary.tiny(num_codes=184_155)  # as many ids as Emu3's, no file needed
    rng = np.random.default_rng(0)
    prefix, packs = folder / f"shard{documents_a_pack}", folder / f"{documents_a_pack}.pack"
    documents = samples * documents_a_pack
    length = CONTEXT // documents_a_pack
    tokens = rng.integers(0, vocabulary.size, documents * length, dtype=np.int32)
    lengths = np.full(documents, length, np.int32)
    one_span = np.ones(documents, np.int32)
    block = Block(tokens, lengths, np.zeros(documents, np.int8), one_span)
    write_shard(prefix, vocabulary, [block])
    pack_shards([prefix], packs, CONTEXT, vocabulary=vocabulary)
    return TokenStore(prefix, vocabulary), PackSet(packs, vocabulary)


def read_all(read: Callable[[int], Any], order: list[int]) -> None:
    for index in order:
        read(index)


def figures(_: None, seconds: float, *, samples: int) -> dict[str, float]:
    return {
        "samples_per_second": samples / seconds,
        "tokens_per_second": samples * CONTEXT / seconds,
    }


def cases(quick: bool) -> Iterator[Case]:
    samples = 2000 if quick else 10_000
    order = np.random.default_rng(0).permutation(samples).tolist()
    with tempfile.TemporaryDirectory() as name:
        for number in DOCUMENTS_A_PACK:
            store, packs = write_packs(Path(name), samples, number)
            builder = RowBuilder(store.vocabulary, CONTEXT, CLASS_WEIGHTS)
            row = partial(read_all, lambda i: builder.batch([packs.row(i)]), order)  # noqa: B023
            after = partial(figures, samples=samples)
            if number == 1:
                stock = IndexedDataset(str(store.prefix), multimodal=False)
                megatron = partial(read_all, lambda i: _tensor(stock.get(i)), order)  # noqa: B023
                ours = partial(read_all, lambda i: _tensor(store.read(i)), order)  # noqa: B023
                yield Case("tokens to tensor", "megatron-core", megatron, after)
                yield Case("tokens to tensor", "emu3", ours, after)
            yield Case(f"batch row, documents a pack: {number}", "emu3", row, after)


def _tensor(tokens: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(tokens.astype(np.int64))


if __name__ == "__main__":
    main(cases)
