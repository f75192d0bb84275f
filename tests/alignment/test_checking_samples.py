"""`emu3 check` on folders of samples."""

import pytest
from support.preferences import add_votes, make_samples

from emu3_megatron.cli import main


@pytest.fixture
def folder(tmp_path):
    return make_samples(tmp_path / "samples")


def test_what_a_folder_holds(folder, capsys):
    add_votes(folder, "ben", {0: (1, 3)})
    add_votes(folder, "ann", {0: (1, 3)})

    main(["check", str(folder)])

    assert capsys.readouterr().out == (
        f"{folder}: 12 samples (image) of 3 prompts, 288 tokens; votes of ann, ben (valid)\n"
    )


def test_an_image_that_is_missing(folder, capsys):
    (folder / "media" / "2-1.png").unlink()

    with pytest.raises(SystemExit):
        main(["check", str(folder)])

    assert "media/2-1.png: missing" in capsys.readouterr().err


def test_votes_that_do_not_belong_there(folder, capsys):
    add_votes(folder, "ann", {7: (1, 3)})

    with pytest.raises(SystemExit):
        main(["check", str(folder)])

    assert "votes-ann.jsonl: line 1: prompt 7" in capsys.readouterr().err


def test_a_folder_that_is_not_finished(tmp_path, capsys):
    (tmp_path / "samples" / ".work").mkdir(parents=True)
    (tmp_path / "samples" / ".work" / "settings.json").write_text("{}", encoding="utf-8")

    with pytest.raises(SystemExit):
        main(["check", str(tmp_path / "samples")])

    assert "samples that are not drawn to the end" in capsys.readouterr().err
