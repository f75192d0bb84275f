"""`emu3 evaluate loss`: what training logs as the held-out loss, in every layout."""

import json
import os

import pytest
from support.processes import run_processes
from support.running import emu3
from support.steps import start
from support.tiny import make_packs, tiny_recipe

from emu3_megatron import parallel
from emu3_megatron.cli import main
from emu3_megatron.data.held_out import HeldOut
from emu3_megatron.data.packing.pack_set import PackSet
from emu3_megatron.data.setting import Setting
from emu3_megatron.training.evaluator import HeldOutLoss


def train_and_measure(recipe):
    """A checkpoint of two steps, and what training would log of it."""
    steps = start(recipe)
    steps.take(0, 2)
    steps.save(recipe.run.dir / "checkpoints", 2)
    trainer, vocabulary = steps.trainer, recipe.model.vocabulary()
    setting = Setting.of(vocabulary, recipe.batch, 0, trainer.objective)
    held_out = HeldOut(recipe.validation, setting, recipe.data)
    measured = HeldOutLoss(trainer, trainer.engine.decoder, held_out, steps).measure(lambda: True)
    parallel.stop(keep_processes=True)
    return measured


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of two steps and held-out packs, and the evaluator's numbers."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "train").mkdir()
    (folder / "held-out").mkdir()
    pack = make_packs(folder / "held-out", seed=1)
    rows = len(PackSet(pack, tiny_recipe(pack, folder).model.vocabulary()))
    recipe = tiny_recipe(
        make_packs(folder / "train"),
        folder,
        batch={"size": rows, "micro_size": rows},
        validation={"every": 1, "batches": 1, "sources": [{"pack": str(pack)}]},
    )
    (measured,) = run_processes(train_and_measure, 1, recipe)
    return folder, {"rows": rows, **measured}


def evaluate(folder, *arguments):
    ended = emu3("evaluate", "loss", ".", *arguments, "--out", "loss.json", cwd=folder)
    assert ended.code in (None, 0), ended.said
    return json.loads((folder / "loss.json").read_text(encoding="utf-8")), ended.said


def test_it_is_what_training_logs(trained):
    folder, logged = trained

    measured, said = evaluate(folder, "--pack", "held-out/tiny.pack", "--batch", "3")

    assert measured == pytest.approx(logged, rel=1e-5)
    assert "rows: loss " in said
    assert "code" in said


def evaluate_here(folder, name, *arguments):
    """On one of several ranks."""
    os.chdir(folder)
    main(["evaluate", "loss", ".", "--pack", "held-out/tiny.pack", *arguments, "--out", name])


@pytest.mark.parametrize("layout", ["--tensor", "--context-ranks", "--batch"])
def test_it_is_the_same_in_every_layout(trained, layout):
    folder, logged = trained

    run_processes(evaluate_here, 2, folder, f"{layout}.json", layout, "2")

    assert json.loads((folder / f"{layout}.json").read_text(encoding="utf-8")) == pytest.approx(
        logged, rel=1e-5
    )


def test_shards_are_packed_and_nothing_is_left_behind(trained):
    folder, logged = trained

    measured, _ = evaluate(folder, "--shards", "held-out/shard")

    assert measured["nll_code"] == pytest.approx(logged["nll_code"], rel=1e-5)
    assert not list(folder.glob(".held-out-*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --pack, or --shards"),
        (["--pack", "held-out/tiny.pack"] * 2, "holds what another --pack holds; name one"),
        (["--pack", "train"], "train: no packs there"),
    ],
)
def test_what_cannot_be_measured_is_refused(trained, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(trained[0])

    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "loss", ".", *arguments])

    assert ended.value.code == 2
    assert message in capsys.readouterr().err
