"""The demo's list of stages: every command is one that a user can type, and failures name it."""

import csv
import re

import numpy as np
import pytest
from PIL import Image
from support.command_line import parse

from emu3_megatron.cli import main
from emu3_megatron.config import Recipe, load_recipe
from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.config.tokenizer_training import TokenizerRecipe
from emu3_megatron.demo import pretraining
from emu3_megatron.demo.documents import Trained
from emu3_megatron.demo.material import PHOTOS
from emu3_megatron.demo.posttraining import vote
from emu3_megatron.demo.script import clear
from emu3_megatron.demo.stages import stages_of
from emu3_megatron.demo.work import Work
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Meta, Vision

SCHEMAS = {
    "tokenizer": TokenizerRecipe,
    "prepare": PrepareRecipe,
    "train": Recipe,
    "reference": Recipe,
}
STAGES = stages_of("all")


class Recorded(Work):
    """Writes commands down and runs none."""

    def _command(self, program, module, words):
        self.commands[self._stage].append([program, *map(str, words)])


@pytest.fixture
def work(tmp_path, monkeypatch):
    picture = Trained("A cat.", Vision(Meta(16, 16), np.zeros((1, 16, 16), np.int64)))
    monkeypatch.setattr(pretraining, "trained", lambda data, kind: [picture] * 2)
    for name in ("lay_out", "lay_out_views", "lay_out_clip"):
        monkeypatch.setattr(pretraining, name, lambda *arguments, **settings: None)
    (tmp_path / "samples").mkdir()
    return Recorded(tmp_path)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_is_commands_that_a_user_can_type(stage, work):
    work.run(stage.name, stage.run)

    for _, *words in work.commands[stage.name]:
        if words[:3] == ["--nproc-per-node", "2", "-m"]:  # torchrun's own
            words = words[4:]
        name, given = parse(words)
        if schema := SCHEMAS.get(words[0]):
            flags = [f"dialogues.source={given['source']}"] if name == "dialogues" else []
            load_recipe(schema, given["recipe"], [*given["overrides"], *flags])


def test_the_first_stages_are_the_beginning_of_all():
    first = stages_of("first")

    assert first == STAGES[: len(first)]
    assert len({stage.name for stage in STAGES}) == len(STAGES)


def test_a_second_run_begins_anew_and_leaves_other_files_alone(tmp_path):
    for name in ("stage2-run", "samples", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "pairs.bin").touch()

    clear(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_failure_names_its_stage_and_the_log_that_has_the_reason(tmp_path, capsys):
    work = Work(tmp_path)

    with pytest.raises(InputError) as error:
        work.run("stage-2", lambda work: work.emu3("status", tmp_path / "nowhere"))

    log = tmp_path / "logs" / "stage-2.log"
    assert str(error.value) == f"stage stage-2: a command failed; its log is {log}"
    typed, reason, *_ = log.read_text(encoding="utf-8").splitlines()
    assert typed == f"$ emu3 status {tmp_path / 'nowhere'}"
    assert reason.startswith("emu3: ")
    assert reason in capsys.readouterr().out


def test_stages_that_there_are_not_are_refused_in_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        main(["demo", "--stages", "second"])

    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"--stages.*'first', 'all'", line)


def test_the_rule_prefers_colour_among_pictures_of_a_caption(tmp_path):
    (tmp_path / "media").mkdir()
    same_caption = f"{len(PHOTOS)}-0"
    for name, colour in {"0-0": "gray", "0-1": "red", same_caption: "white", "1-0": "blue"}.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / "media" / f"{name}.png")

    vote(tmp_path)

    with (tmp_path / "rule.csv").open(newline="", encoding="utf-8") as file:
        scores = {row["sample"]: float(row["colour"]) for row in csv.DictReader(file)}
    assert scores["0-1"] > 0 > scores["0-0"] == scores[same_caption]
    assert scores["1-0"] == 0  # alone of its caption
