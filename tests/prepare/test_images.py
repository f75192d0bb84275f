"""Photos to a shard: documents that parse, and what cannot be used named or refused."""

import re

import pytest

from emu3_megatron.data.store import TokenStore
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Vision, parse
from emu3_megatron.prepare.images import prepare_images
from emu3_megatron.vocabulary import Vocabulary

AREA = 48 * 32


@pytest.fixture
def prepare(tmp_path, tokenizer, vocabulary):
    """A function that prepares the photos into tmp_path/shard."""

    def run(**settings):
        return prepare_images(
            tmp_path / "photos", tmp_path / "shard", tokenizer, vocabulary, area=AREA, **settings
        )

    return run


def read(tmp_path, vocabulary):
    store = TokenStore(tmp_path / "shard", vocabulary)
    return [parse(vocabulary, store.document(i).tokens) for i in range(len(store))]


def break_photo(folder):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not a photo")
    (folder / "broken.txt").write_text("a ruin")


def missing_caption(add_photo):
    add_photo("orphan")
    return r"orphan\.png: no caption; write it to orphan\.txt"


def broken_photo(add_photo):
    break_photo(add_photo("good", "a cat"))
    return r"broken\.jpg: not a readable image"


def narrow_photo(add_photo):
    add_photo("narrow", "a rope", size=(102, 20))
    return r"narrow\.png: 102x20 is narrower than 1:5"


UNUSABLE = [missing_caption, broken_photo, narrow_photo]


def test_a_photo_becomes_a_captioned_document(add_photo, prepare, tmp_path, vocabulary):
    add_photo("cat", "a cat\n")

    counts = prepare()

    ((caption, vision),) = read(tmp_path, vocabulary)
    assert caption == "a cat"
    assert vision.codes.shape == (1, 4, 6)
    assert (counts.documents, counts.skipped) == (1, 0)


def test_understanding_adds_documents_with_the_caption_behind(
    add_photo, prepare, tmp_path, vocabulary
):
    add_photo("cat", "a cat")

    counts = prepare(understanding_fraction=1)

    first, second = read(tmp_path, vocabulary)
    assert [type(part) for part in first] == [str, Vision]
    assert [type(part) for part in second] == [Vision, str]
    assert counts.documents == 2


def test_a_fraction_of_the_photos_is_also_understood(add_photo, prepare):
    for i in range(16):
        add_photo(f"photo{i}", "a cat")

    assert 18 <= prepare(understanding_fraction=0.5).documents <= 30


@pytest.mark.parametrize("make", UNUSABLE)
def test_unusable_photos_are_named_and_skipped(make, add_photo, prepare, capsys):
    add_photo("good", "a cat")
    message = make(add_photo)

    counts = prepare()

    assert (counts.documents, counts.skipped) == (1, 1)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert re.search(message, line)


@pytest.mark.parametrize("make", UNUSABLE)
def test_strict_refuses_unusable_photos_and_writes_nothing(make, add_photo, prepare, tmp_path):
    add_photo("good", "a cat")
    message = make(add_photo)

    with pytest.raises(InputError, match=message):
        prepare(strict=True)

    assert list(tmp_path.glob("*shard*")) == []


def test_an_empty_caption_is_skipped(add_photo, prepare):
    add_photo("good", "a cat")
    add_photo("mute", " \n")

    assert prepare().skipped == 1


def test_filters_leave_photos_out(add_photo, prepare):
    add_photo("cat", "a cat")
    add_photo("dog", "a dog")

    counts = prepare(filters=[lambda image, caption: "cat" in caption], strict=True)

    assert (counts.documents, counts.filtered, counts.skipped) == (1, 1, 0)


def test_no_usable_photo_is_an_error_and_writes_nothing(add_photo, prepare, tmp_path):
    add_photo("orphan")

    with pytest.raises(InputError, match="no documents to write"):
        prepare()

    assert list(tmp_path.glob("*shard*")) == []


def test_missing_folder_is_named(prepare):
    with pytest.raises(InputError, match="photos: no such folder"):
        prepare()


def test_tokenizer_of_another_model_is_refused(add_photo, tmp_path, tokenizer):
    folder = add_photo("cat", "a cat")

    with pytest.raises(InputError, match="the tokenizer has 512 codes, the vocabulary 1,024"):
        prepare_images(folder, tmp_path / "shard", tokenizer, Vocabulary.tiny(1024), area=AREA)
