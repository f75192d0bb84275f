"""Finding files, and the error of one that cannot be read."""

import pickle

import pytest

from emu3_megatron.errors import InputError
from emu3_megatron.media.files import IMAGE_SUFFIXES, UnreadableError, find_files
from emu3_megatron.media.overlap import refuse_overlap


def test_files_are_found_in_folders_too_and_sorted(tmp_path):
    for name in ("b.PNG", "a.jpg", "deep/er/c.webp", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("gone")

    found = find_files(tmp_path, IMAGE_SUFFIXES)

    assert [path.relative_to(tmp_path).as_posix() for path in found] == [
        "a.jpg",
        "b.PNG",
        "deep/er/c.webp",
    ]


def test_a_folder_without_such_files_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no file ends in one of \.apng, \.avif"):
        find_files(tmp_path, IMAGE_SUFFIXES)
    with pytest.raises(InputError, match="none: no such folder"):
        find_files(tmp_path / "none", IMAGE_SUFFIXES)


def test_the_error_comes_back_from_another_process():
    error = pickle.loads(pickle.dumps(UnreadableError("a.jpg", "not a readable image")))

    assert (str(error), error.reason) == ("a.jpg: not a readable image", "not a readable image")


def test_tested_files_with_the_content_of_training_files_are_refused(tmp_path):
    for name, content in {"a.png": b"one", "b.png": b"two", "c.png": b"three"}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "renamed.png").write_bytes(b"two")
    tested = [tmp_path / "a.png", tmp_path / "renamed.png"]

    refuse_overlap(tested, [tmp_path / "c.png"])
    with pytest.raises(InputError, match=r"renamed\.png: has the content .*b\.png \(1 of 2 files"):
        refuse_overlap(tested, [tmp_path / "b.png", tmp_path / "c.png"])
