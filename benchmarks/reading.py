"""Reading sequences of 5,120 tokens in random order from the page cache, in one thread.

`tokens to tensor` compares like with like: one document to an int64 tensor, by megatron-core's
IndexedDataset and by TokenStore, which checks every id besides. `batch row` is the whole row that
training gets: tokens, labels, weights, positions.

`batches` compares whole batches with those of megatron-core's GPTDataset, which cuts the same
documents into rows of the same length and begins positions anew at each document. Its rows named
`with mask` make the attention mask that begins anew, too, which has context x context elements;
ours keeps the borders of documents in its place. Runs of all of them alternate, and rates are from
the median CPU time.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from harness import Case, alternately, measure, write_rows
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split

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
    tokens = rng.integers(vocabulary.first_code, vocabulary.size, documents * length, np.int32)
    tokens[length - 1 :: length] = vocabulary.eos  # by which GPTDataset finds documents
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


def megatrons(store: TokenStore, samples: int, cache: Path, mask: bool) -> GPTDataset:
    """Rows of the same documents, as pretraining with Megatron-LM gets them."""
    tokenizer = SimpleNamespace(
        vocab_size=store.vocabulary.size, eod=store.vocabulary.eos, unique_identifiers={}
    )
    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=CONTEXT,
        blend=([str(store.prefix)], None),
        split="1,0,0",
        path_to_cache=str(cache),
        tokenizer=tokenizer,
        reset_position_ids=True,
        reset_attention_mask=True,
        eod_mask_loss=True,
        create_attention_mask=mask,
    )
    stock = IndexedDataset(str(store.prefix), multimodal=False)
    documents = np.arange(len(store), dtype=np.int32)
    return GPTDataset(stock, str(store.prefix), documents, samples, Split.train, config)


def batches(quick: bool) -> Iterator[dict[str, Any]]:
    """Ours and Megatron's by turns."""
    samples, masked = (500, 5) if quick else (4000, 20)
    with tempfile.TemporaryDirectory() as folder:
        for number in DOCUMENTS_A_PACK:
            store, packs = write_packs(Path(folder), samples, number)
            builder = RowBuilder(store.vocabulary, CONTEXT, CLASS_WEIGHTS)
            stock = megatrons(store, samples // 2, Path(folder), mask=False)
            with_mask = megatrons(store, samples // 2, Path(folder), mask=True)
            order = np.random.default_rng(0).permutation(samples // 2).tolist()
            runs = {
                "emu3": (lambda i: builder.batch([packs.row(i)]), order),  # noqa: B023
                "GPTDataset": (stock.__getitem__, order),
                "GPTDataset, with mask": (with_mask.__getitem__, order[:masked]),
            }
            found = alternately({name: partial(read_all, *run) for name, run in runs.items()}, 5)
            for name, row in found.items():
                seconds = row["cpu_median_ms"] / 1e3
                rates = figures(None, seconds, samples=len(runs[name][1]))
                case = f"batches, documents a row: {number}"
                yield {"case": case, "implementation": name, **row, **rates}


def rows(quick: bool) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(1)
    for case in cases(quick):
        yield measure(case, 5)
    yield from batches(quick)


def _tensor(tokens: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(tokens.astype(np.int64))


if __name__ == "__main__":
    write_rows(rows)
