"""Groups of documents share their prompt, by `emu3 check` and when data is opened."""

import numpy as np
import pytest

from emu3_megatron.data.check import check
from emu3_megatron.data.groups import check_prompts
from emu3_megatron.data.packing.packs import pack_shards
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Document, Span


@pytest.fixture
def pair(vocabulary):
    """A function that makes two documents of a prompt each."""

    def make(*prompts):
        end = Span(np.array([vocabulary.eos], np.int32))
        return [
            Document(
                (Span(vocabulary.encode(prompt), trained=False), Span(vocabulary.encode(word)), end)
            )
            for prompt, word in zip(prompts, ("yes", "no"), strict=True)
        ]

    return make


def test_pairs_of_one_prompt_are_taken(write_shard, pair, vocabulary):
    documents = [d for i in range(9000) for d in pair(f"is it {i % 7}", f"is it {i % 7}")]

    check_prompts(TokenStore(write_shard(documents, group=2), vocabulary))


@pytest.mark.parametrize("other", ["is it 8", "is it so"], ids=["as long", "longer"])
def test_a_pair_with_two_prompts_is_named_by_its_number(write_shard, pair, vocabulary, other):
    documents = [d for _ in range(5) for d in pair("is it 7", "is it 7")]
    prefix = write_shard([*documents, *pair("is it 7", other)], group=2)

    with pytest.raises(InputError, match="shard: pair 5, documents 10 to 11, has two prompts"):
        check(prefix, vocabulary, deep=True)


def test_a_pack_of_such_pairs_is_refused_by_emu3_check(write_shard, pair, vocabulary, tmp_path):
    prefix = write_shard([*pair("a", "a"), *pair("a", "b")], group=2)
    pack_shards([prefix], tmp_path / "pairs.pack", 64, vocabulary=vocabulary)

    with pytest.raises(InputError, match="pair 1, documents 2 to 3, has two prompts"):
        check(tmp_path / "pairs.pack", vocabulary, deep=True)


def test_a_pair_without_a_prompt_is_refused_where_one_is_needed(write_shard, make_text, vocabulary):
    store = TokenStore(write_shard([make_text(9)] * 2, group=2), vocabulary)

    check_prompts(store, needed=False)
    with pytest.raises(InputError, match="document 0 has no prompt, none of its spans is context"):
        check_prompts(store)


def test_of_many_pairs_some_are_compared_and_all_measured(write_shard, pair, vocabulary):
    """Every tenth here: the eleventh is among them, the fifth is not."""
    documents = [d for _ in range(20) for d in pair("is it 7", "is it 7")]
    tokens = 2 * 20 * len(vocabulary.encode("is it 7"))

    for number, found in ((5, False), (10, True)):
        changed = [*documents]
        changed[2 * number : 2 * number + 2] = pair("is it 7", "is it 8")
        store = TokenStore(write_shard(changed, f"shard-{number}", group=2), vocabulary)
        if found:
            with pytest.raises(InputError, match="pair 10, documents 20 to 21"):
                check_prompts(store, most_tokens=tokens // 10)
        else:
            check_prompts(store, most_tokens=tokens // 10)


def test_a_pair_longer_than_the_context_is_named(write_shard, pair, vocabulary, tmp_path):
    prefix = write_shard([*pair("a", "a"), *pair("b" * 40, "b" * 40)], group=2)

    with pytest.raises(InputError, match=r"documents 2 to 3, a group that may not be cut, are \d+"):
        pack_shards([prefix], tmp_path / "pairs.pack", 64, vocabulary=vocabulary)
