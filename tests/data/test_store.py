"""Token shards: what is written comes back, here and in stock megatron-core; damage is named."""

import hashlib
import json
import pickle

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from support.shards import write_by_megatron

from emu3_megatron.data.shards.sidecar import shard_file
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.data.shards.writer import Block, adopt, block_of
from emu3_megatron.data.shards.writer import write_shard as write_blocks
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Document, Span
from emu3_megatron.vocabulary import Vocabulary


@pytest.fixture
def documents(make_image, make_text, answered):
    return [make_image(), make_text(10), answered]


@pytest.fixture
def prefix(write_shard, documents):
    return write_shard(documents)


def stock_shard(prefix, sequences, modes=None):
    """Each sequence as a document of its own, by megatron-core's builder."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", np.int32, multimodal=modes is not None)
    for i, sequence in enumerate(sequences):
        builder.add_document(np.array(sequence), [len(sequence)], modes and [modes[i]])
    builder.finalize(f"{prefix}.idx")


def test_documents_come_back_with_their_spans(prefix, documents, vocabulary):
    store = TokenStore(prefix, vocabulary)

    assert len(store) == 3
    for i, expected in enumerate(documents):
        read = store.document(i)
        assert [span.trained for span in read.spans] == [span.trained for span in expected.spans]
        for span, expected_span in zip(read.spans, expected.spans, strict=True):
            np.testing.assert_array_equal(span.tokens, expected_span.tokens)


def test_the_sidecar_holds_what_sha256sum_prints(prefix, tmp_path, vocabulary):
    many = np.arange(300_000, dtype=np.int32) % vocabulary.size  # more than is hashed at once
    one = np.array([len(many)], np.int32)
    block = Block(many, one, np.zeros(1, np.int8), one // one)
    write_blocks(tmp_path / "many", vocabulary, [block] * 2)

    for written in (prefix, tmp_path / "many"):
        files = [shard_file(written, suffix).read_bytes() for suffix in ("bin", "idx")]
        sidecar = TokenStore(written, vocabulary).check_all()  # reads it anew
        assert sidecar.content == hashlib.sha256(b"".join(files)).hexdigest()
        assert sidecar.bin_bytes == len(files[0])


def test_megatrons_own_builder_writes_the_same_bytes(prefix, documents, tmp_path):
    write_by_megatron(tmp_path / "theirs", documents)

    for suffix in ("bin", "idx"):
        ours, theirs = (shard_file(p, suffix).read_bytes() for p in (prefix, tmp_path / "theirs"))
        assert ours == theirs


def test_blocks_one_by_one_are_the_shard_of_all_documents(prefix, documents, tmp_path, vocabulary):
    blocks = (block_of([document]) for document in documents)
    write_blocks(tmp_path / "blocks", vocabulary, blocks)

    for suffix in ("bin", "idx", "json"):
        ours, one_by_one = (
            shard_file(p, suffix).read_bytes() for p in (prefix, tmp_path / "blocks")
        )
        assert ours == one_by_one


def test_stock_megatron_reads_our_tokens_and_modes(prefix, documents):
    stock = IndexedDataset(str(prefix), multimodal=True)

    spans = [span for document in documents for span in document.spans]
    assert list(stock.document_indices) == [0, 3, 4, 6]
    for i, span in enumerate(spans):
        tokens, mode = stock.get(i)
        np.testing.assert_array_equal(tokens, span.tokens)
        assert mode == (0 if span.trained else 1)


def test_we_read_what_stock_megatron_wrote(tmp_path, vocabulary):
    stock_shard(tmp_path / "stock", [[1, 2, 3], [4, 5]], modes=[0, 1])

    store = TokenStore(tmp_path / "stock", vocabulary)

    assert [store.read(i).tolist() for i in range(2)] == [[1, 2, 3], [4, 5]]
    assert [store.document(i).spans[0].trained for i in range(2)] == [True, False]


@pytest.mark.parametrize("empty", [0, 1, 2], ids=["first", "between", "last"])
def test_a_document_without_sequences_is_read_as_megatron_wrote_it(tmp_path, vocabulary, empty):
    texts = [[1, 2, 3], [4, 5]]
    builder = IndexedDatasetBuilder(str(tmp_path / "a.bin"), dtype=np.int32)
    for number in range(3):
        if number != empty:
            builder.add_item(torch.tensor(texts[number - (number > empty)]))
        builder.end_document()
    builder.finalize(str(tmp_path / "a.idx"))

    store = TokenStore(tmp_path / "a", vocabulary)

    found = [store.read(i).tolist() for i in range(3)]
    assert [one for one in found if one] == texts
    assert found[empty] == []
    assert store.document_lengths.tolist() == [len(one) for one in found]
    assert [len(store.document(i)) for i in range(3)] == [len(one) for one in found]
    assert store.is_text().tolist() == [number != empty for number in range(3)]


def test_stock_shards_without_modes_are_all_trained(tmp_path, vocabulary):
    stock_shard(tmp_path / "stock", [[1, 2, 3]])

    assert TokenStore(tmp_path / "stock", vocabulary).document(0).spans[0].trained


def test_adopting_a_stock_shard_gives_it_a_sidecar(tmp_path, vocabulary):
    stock_shard(tmp_path / "stock", [[7, 2, 3]])

    adopt(TokenStore(tmp_path / "stock", vocabulary))

    sidecar = TokenStore(tmp_path / "stock", vocabulary).sidecar
    assert (sidecar.documents, sidecar.tokens) == (1, 3)
    assert (sidecar.smallest_id, sidecar.largest_id) == (2, 7)


def test_lengths_and_pieces(prefix, documents, vocabulary):
    store = TokenStore(prefix, vocabulary)

    assert store.document_lengths.tolist() == [len(document) for document in documents]
    np.testing.assert_array_equal(store.read(0, 2, 5), documents[0].tokens[2:7])


def test_only_single_spans_without_vision_are_text(prefix, vocabulary):
    assert TokenStore(prefix, vocabulary).is_text().tolist() == [False, True, False]


def test_a_pickled_store_reads_on(prefix, documents, vocabulary):
    store = pickle.loads(pickle.dumps(TokenStore(prefix, vocabulary)))

    np.testing.assert_array_equal(store.read(1), documents[1].tokens)


def test_short_bin_is_refused_with_its_sizes(prefix, vocabulary):
    path = shard_file(prefix, "bin")
    path.write_bytes(path.read_bytes()[:-4])

    with pytest.raises(InputError, match=r"shard\.bin: \d+ bytes, expected \d+ .*copy"):
        TokenStore(prefix, vocabulary)


def test_short_idx_is_refused_with_its_sizes(prefix, vocabulary):
    path = shard_file(prefix, "idx")
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(InputError, match=r"shard\.idx: \d+ bytes, expected \d+ .*copy"):
        TokenStore(prefix, vocabulary)


def test_an_unknown_mode_is_named(tmp_path, vocabulary):
    stock_shard(tmp_path / "stock", [[1, 2, 3], [4, 5]], modes=[0, 2])

    with pytest.raises(
        InputError, match=r"stock\.idx: sequence 1 has mode 2, known are 0 \(trained"
    ):
        TokenStore(tmp_path / "stock", vocabulary)


def test_idx_without_its_modes_is_refused(prefix, vocabulary):
    path = shard_file(prefix, "idx")
    path.write_bytes(path.read_bytes()[: -len(IndexedDataset(str(prefix)))])

    with pytest.raises(InputError, match=r"shard\.idx: \d+ bytes, expected \d+"):
        TokenStore(prefix, vocabulary)


def test_contradicting_index_is_refused(prefix, vocabulary):
    path = shard_file(prefix, "idx")
    data = bytearray(path.read_bytes())
    data[34] += 1  # the first sequence is one token longer
    path.write_bytes(bytes(data))

    with pytest.raises(InputError, match="contradict"):
        TokenStore(prefix, vocabulary)


def test_another_file_is_refused(tmp_path, vocabulary):
    (tmp_path / "photo.idx").write_bytes(b"JFIF" * 20)

    with pytest.raises(InputError, match="not the index of a token shard"):
        TokenStore(tmp_path / "photo", vocabulary)


def test_missing_shard_is_named(tmp_path, vocabulary):
    with pytest.raises(InputError, match=r"nothing\.idx: no such file"):
        TokenStore(tmp_path / "nothing", vocabulary)


def test_missing_bin_is_named(prefix, vocabulary):
    shard_file(prefix, "bin").unlink()

    with pytest.raises(InputError, match=r"shard\.bin: no such file"):
        TokenStore(prefix, vocabulary)


def test_other_vocabulary_is_refused(prefix):
    with pytest.raises(InputError, match="another vocabulary"):
        TokenStore(prefix, Vocabulary.tiny(num_codes=1024))


@pytest.mark.parametrize("bad", [-1, 979])
def test_id_outside_the_vocabulary_is_named_at_opening(tmp_path, vocabulary, bad):
    stock_shard(tmp_path / "stock", [[1, 2], [3, bad]])

    with pytest.raises(InputError, match=f"document 1 holds id {bad}, the vocabulary has 979"):
        TokenStore(tmp_path / "stock", vocabulary)


def test_every_read_is_range_checked(tmp_path, vocabulary):
    clean = [1] * 40_000
    stock_shard(tmp_path / "stock", [clean, [*clean, 979], clean])
    store = TokenStore(tmp_path / "stock", vocabulary, scan=1)

    with pytest.raises(InputError, match="document 1 holds id 979"):
        store.read(1)


def test_full_check_reads_every_token(tmp_path, vocabulary):
    clean = [1] * 40_000
    stock_shard(tmp_path / "stock", [clean, [*clean, 979], clean])
    store = TokenStore(tmp_path / "stock", vocabulary, scan=1)

    with pytest.raises(InputError, match="document 1 holds id 979"):
        store.check_all()


def test_full_check_sees_changed_tokens(prefix, vocabulary):
    path = shard_file(prefix, "bin")
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))

    with pytest.raises(InputError, match="not the content"):
        TokenStore(prefix, vocabulary).check_all()


def broken_off(document):
    yield block_of([document])
    raise RuntimeError("power cut")


def test_an_exception_while_writing_leaves_no_file(tmp_path, vocabulary, make_text):
    with pytest.raises(RuntimeError, match="power cut"):
        write_blocks(tmp_path / "shard", vocabulary, broken_off(make_text(10)))

    assert list(tmp_path.iterdir()) == []


def test_an_exception_while_writing_leaves_the_old_shard(prefix, vocabulary, documents, make_text):
    with pytest.raises(RuntimeError, match="power cut"):
        write_blocks(prefix, vocabulary, broken_off(make_text(10)))

    assert len(TokenStore(prefix, vocabulary)) == len(documents)


def test_ids_outside_the_vocabulary_are_not_written(write_shard):
    with pytest.raises(InputError, match=r"shard: ids 979\.\.979 leave the vocabulary of 979"):
        write_shard([Document((Span(np.array([979], np.int32)),))])


def test_a_shard_without_documents_is_refused(write_shard):
    with pytest.raises(InputError, match="shard: no documents to write"):
        write_shard([])


def test_a_document_without_tokens_is_refused(write_shard, make_text):
    with pytest.raises(InputError, match="document 1: no tokens"):
        write_shard([make_text(5), Document((Span(np.array([], np.int32)),))])


# Groups of documents


def test_a_shard_of_pairs_says_so(write_shard, make_text, vocabulary):
    store = TokenStore(write_shard([make_text(5), make_text(6)], group=2), vocabulary)

    assert store.group == 2
    assert store.check_all() == store.sidecar


def test_the_sidecar_of_a_shard_without_groups_does_not_mention_them(prefix, vocabulary):
    assert "group" not in json.loads(shard_file(prefix, "json").read_text(encoding="utf-8"))
    assert TokenStore(prefix, vocabulary).group is None


def test_half_a_pair_is_not_written(write_shard, make_text):
    with pytest.raises(InputError, match="shard: 3 documents are no groups of 2; write whole"):
        write_shard([make_text(5)] * 3, group=2)


def test_a_sidecar_whose_groups_do_not_fit_is_refused(write_shard, make_text, vocabulary):
    prefix = write_shard([make_text(5)] * 4, group=2)
    path = shard_file(prefix, "json")
    path.write_text(
        json.dumps({**json.loads(path.read_text(encoding="utf-8")), "group": 3}), encoding="utf-8"
    )

    with pytest.raises(InputError, match=r"shard\.json: 4 documents are no groups of 3"):
        TokenStore(prefix, vocabulary)
