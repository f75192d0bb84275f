"""Small shards and packs for the tests of data/."""

import numpy as np
import pytest
from support.shards import write_documents

from emu3_megatron.data.packing.packs import PackSet, pack_shards
from emu3_megatron.grammar import Document, Span, captioned_image, plain_text
from emu3_megatron.vocabulary import Vocabulary


@pytest.fixture(scope="session")
def vocabulary():
    return Vocabulary.tiny()


@pytest.fixture
def write_shard(tmp_path, vocabulary):
    """A function that writes documents as a shard and returns its prefix."""

    def write(documents, name="shard", group=None):
        return write_documents(tmp_path / name, vocabulary, documents, group)

    return write


@pytest.fixture(scope="session")
def make_image(vocabulary):
    """A function that makes a captioned image of random codes."""
    rng = np.random.default_rng(0)

    def make(caption="a cat", height=3, width=4):
        return captioned_image(vocabulary, caption, rng.integers(0, 512, (height, width)))

    return make


@pytest.fixture(scope="session")
def make_text(vocabulary):
    """A function that makes a text document of so many tokens, BOS and EOS included."""
    return lambda length: plain_text(vocabulary, "x" * (length - 2))


@pytest.fixture(scope="session")
def answered(vocabulary):
    """A question that is context, and an answer that is trained."""
    question = Span(vocabulary.encode("why?"), trained=False)
    return Document((question, Span(vocabulary.encode("so."))))


@pytest.fixture
def make_packs(tmp_path, write_shard, vocabulary):
    """A function that packs documents and returns the opened packs."""

    def make(documents, context=64, name="train", **settings):
        prefix = write_shard(documents, name)
        pack_shards([prefix], tmp_path / f"{name}.pack", context, vocabulary=vocabulary, **settings)
        return PackSet(tmp_path / f"{name}.pack", vocabulary)

    return make
