"""`emu3 recipe`: what ships, and a recipe with all its keys."""

import pytest
import yaml

from emu3_megatron.cli import main
from emu3_megatron.config.load import shipped_recipes


def printed(capsys, *arguments):
    main(["recipe", *arguments])
    return capsys.readouterr().out


def test_without_a_name_the_shipped_ones_are_listed_with_their_first_comment(capsys):
    lines = printed(capsys).splitlines()

    assert [line.split()[0] for line in lines] == sorted(shipped_recipes())
    assert "Stage 1 in small: the demo's decoder, on a CPU" in " ".join(lines)
    assert all(len(line.split()) > 3 for line in lines)


def test_overrides_are_resolved(capsys):
    text = printed(capsys, "stage1-tiny-cpu", "run.steps=60", "data.sources.0.pack=my.pack")

    values = yaml.safe_load(text)
    assert values["run"]["steps"] == 60
    assert values["data"]["sources"][0]["pack"] == "my.pack"
    assert values["data"]["workers"] == 0, "the recipe's"
    assert values["optimizer"]["beta1"] == 0.9, "the default"


def test_keys_have_their_description_default_and_resume(capsys):
    text = printed(capsys, "stage1-tiny-cpu")

    assert "  # steps between rows of metrics (default 10; free)\n  log_every: 5\n" in text


def test_keys_of_sections_that_are_not_there_stand_as_comments(capsys):
    text = printed(capsys, "stage1-tiny-cpu")

    assert "\nvalidation: null\n#  every: steps between evaluations; " in text


def test_a_wrong_override_is_named(capsys):
    with pytest.raises(SystemExit) as end:
        main(["recipe", "stage1-tiny-cpu", "run.step=1"])

    assert end.value.code == 2
    assert "run.step: no such key; did you mean steps?" in capsys.readouterr().err
