"""Columns beside packs: written row by row, gone on with, attached to the pieces of their rows."""

import numpy as np
import pytest

from emu3_megatron.data.columns import Column, Columns, ColumnWriter, read_columns
from emu3_megatron.errors import InputError

ABOUT = {"column": "test", "of": "a model"}


@pytest.fixture
def packs(make_packs, make_text):
    return make_packs([make_text(20 + i) for i in range(9)], 64)


def rows_of(packs, factor=1.0):
    """A row's values: the numbers of its tokens."""
    return [
        factor * np.concatenate([piece.tokens for piece in packs.row(i)]).astype(np.float32)
        for i in range(len(packs))
    ]


def write(folder, packs, values, about=ABOUT, commit=True):
    writer = ColumnWriter(folder, about)
    done = writer.begin(packs)
    for row in values[done:]:
        writer.append(row)
    writer.end()
    if commit:
        writer.commit()
    return done


def test_pieces_get_the_values_of_their_tokens(packs, tmp_path):
    write(tmp_path / "columns", packs, rows_of(packs))
    columns = Columns({"number": tmp_path / "columns"})
    columns.check([packs])

    for index in range(len(packs)):
        for piece in columns.attach(packs, index, packs.row(index)):
            np.testing.assert_array_equal(piece.columns["number"], piece.tokens)


def test_an_interrupted_writer_goes_on_where_it_was(packs, tmp_path):
    folder, values = tmp_path / "columns", rows_of(packs)
    write(folder, packs, values[:2], commit=False)
    assert not folder.exists()
    beside = next(tmp_path.glob(".columns.part/*.values"))
    with beside.open("ab") as file:
        file.write(b"half a row")

    assert write(folder, packs, values) == 2

    column = Column(folder)
    for index, row in enumerate(values):
        np.testing.assert_array_equal(column.row(packs.content, index), row)
    assert not list(tmp_path.glob(".columns*"))


def test_what_was_begun_for_another_model_is_begun_anew(packs, tmp_path):
    write(tmp_path / "columns", packs, rows_of(packs, factor=2), commit=False)

    done = write(tmp_path / "columns", packs, rows_of(packs), {**ABOUT, "of": "another"})

    assert done == 0
    np.testing.assert_array_equal(
        Column(tmp_path / "columns").row(packs.content, 0), rows_of(packs)[0]
    )


def test_a_folder_takes_another_source(packs, make_packs, make_text, tmp_path):
    other = make_packs([make_text(30)], 64, "other")
    for source in (packs, other):
        write(tmp_path / "columns", source, rows_of(source))

    assert len(read_columns(tmp_path / "columns")["sources"]) == 2
    Columns({"number": tmp_path / "columns"}).check([packs, other])


def test_two_do_not_write_one_folder(packs, tmp_path):
    writer = ColumnWriter(tmp_path / "columns", ABOUT)

    with pytest.raises(InputError, match="another process writes it now; wait for it"):
        ColumnWriter(tmp_path / "columns", ABOUT)
    writer.begin(packs)


def test_a_source_that_is_not_held_is_named(packs, make_packs, make_text, tmp_path):
    write(tmp_path / "columns", packs, rows_of(packs))
    other = make_packs([make_text(30)], 64, "other")

    with pytest.raises(InputError, match=r"columns: holds nothing of .*other.pack as it is now"):
        Columns({"number": tmp_path / "columns"}).check([other])


def test_a_file_that_was_cut_is_named(packs, tmp_path):
    write(tmp_path / "columns", packs, rows_of(packs))
    path = next((tmp_path / "columns").glob("*.values"))
    path.write_bytes(path.read_bytes()[:-4])

    with pytest.raises(InputError, match=r"\.values: not [\d,]+ bytes, as its manifest says"):
        Columns({"number": tmp_path / "columns"}).check([packs])


def test_documents_with_columns_keep_their_caption(make_image, vocabulary):
    from emu3_megatron.data.null_prompt import caption_end
    from emu3_megatron.data.source import Piece

    image = Piece(make_image().tokens, None, "shard", 0)

    assert caption_end(image, vocabulary) is not None
    assert caption_end(image._replace(columns={"number": image.tokens}), vocabulary) is None
