"""What a run's folder tells without the run."""

import json
import os
import signal
import subprocess
import sys

import pytest
from support.batches import reader, setting_of
from support.faults import Job, events, run_job
from support.tiny import CONTEXT, VOCABULARY

from emu3_megatron.cli import main
from emu3_megatron.data.mixed import MixtureData
from emu3_megatron.data.packing.packs import pack_shards
from emu3_megatron.training.trainer import DecoderTrainer


def say(capsys, *arguments):
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out.splitlines()


def test_status_of_a_run_that_ended(untroubled, capsys):
    lines = say(capsys, "status", untroubled)

    assert lines[0] == f"{untroubled}: not running"
    assert lines[1].startswith("step: 8 of 8; ")
    assert lines[1].endswith(" s a step, none left")
    assert lines[2].startswith("loss: ")
    assert lines[3:] == ["last durable checkpoint: step 8"]


def test_status_of_a_run_that_lives_and_of_one_that_was_killed(recipe, capsys):
    recipe = recipe(run={"steps": 100_000, "save_every": 3})
    job = Job(recipe)
    job.until(lambda: events(recipe.run.dir, "durable"))
    lines = say(capsys, "status", recipe.run.dir)
    os.kill(job.processes[0].pid, signal.SIGKILL)
    job.wait()
    after = say(capsys, "status", recipe.run.dir)

    assert f"running, process {job.processes[0].pid} on " in lines[0]
    assert any(line.startswith("last durable checkpoint: step ") for line in lines)
    assert "dead: process " in after[0]


def fail_in_step_3():
    step = DecoderTrainer.step

    def failing(self, number, batches, judge):
        if number == 3:
            raise RuntimeError("out of luck\nand of much else")
        return step(self, number, batches, judge)

    DecoderTrainer.step = failing


def test_status_of_a_run_that_failed_says_in_what_step_and_how(recipe, capsys):
    recipe = recipe(data={"workers": 1})  # which must not keep a run that failed from ending
    (end,) = run_job(recipe, fault=fail_in_step_3)
    failed = say(capsys, "status", recipe.run.dir)
    run_job(recipe)
    afterwards = say(capsys, "status", recipe.run.dir)

    assert end.code == 1
    assert failed[0].endswith("not running; failed in step 3: RuntimeError: out of luck")
    assert afterwards[0].endswith(": not running")


def test_status_of_what_is_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        say(capsys, "status", tmp_path)

    assert "no run here, run.json is missing" in capsys.readouterr().err


def test_a_reader_that_leaves_ends_status_without_a_traceback(untroubled):
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "emu3_megatron", "status", str(untroubled)]
    ended = subprocess.run(
        command, stdout=writing, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    os.close(writing)

    assert (ended.returncode, ended.stderr) == (1, "")


def test_the_documents_of_a_step_follow_from_its_number(untroubled, recipe, capsys):
    lines = say(capsys, "inspect", "batch", untroubled, "--step", 5)
    description = json.loads((untroubled / "run.json").read_text(encoding="utf-8"))
    data = MixtureData(recipe().data, setting_of(recipe()))
    data.load_state_dict(description["data"])
    batches = next(data.batches(reader(), 4, 5))
    rows = [row for batch in batches for row in batch.documents]

    assert lines[0].startswith("sequence 32: row ")
    told = [line.split()[2].rstrip(":") for line in lines if line.startswith("  ")]
    assert told == [str(ref.document) for row in rows for ref in row]


def test_a_mixture_that_changes_in_mid_run_repeats_no_sample(recipe, packs, capsys, tmp_path):
    sources = [{"pack": str(tmp_path / f"{name}.pack")} for name in "ab"]
    for seed, source in enumerate(sources):
        shard = packs.parent / "shard"
        pack_shards([shard], source["pack"], CONTEXT, vocabulary=VOCABULARY, seed=seed)
    (end,) = run_job(recipe(run={"stop_after": 2}, data={"sources": sources[:1]}))
    assert end.code == 0, end.said
    (end,) = run_job(recipe(run={"stop_after": 4}, data={"sources": sources}), accept=True)
    assert end.code == 0, end.said

    folder = recipe().run.dir
    said = [say(capsys, "inspect", "batch", folder, "--step", step) for step in range(1, 5)]
    drawn = [line.split(": ")[1] for lines in said for line in lines if line.startswith("sequence")]
    assert len(drawn) == len(set(drawn)) == 4 * 8
    of_b = [line.endswith("/b.pack") for line in drawn]
    assert sum(of_b[:16]) == 0
    assert sum(of_b[16:]) == 8


def test_another_layout_and_micro_batch_go_on_with_the_same_samples(recipe, untroubled, capsys):
    (end,) = run_job(recipe(run={"stop_after": 4}))
    assert end.code == 0, end.said
    ends = run_job(recipe(batch={"micro_size": 4}), ranks=2)
    assert [end.code for end in ends] == [0, 0], ends[0].said
    rows = {
        folder: [json.loads(line) for line in (folder / "metrics.jsonl").open(encoding="utf-8")]
        for folder in (recipe().run.dir, untroubled)
    }
    mine, other = rows.values()

    for name in ("tokens_text", "tokens_code", "tokens_structure"):
        assert [row[name] for row in mine] == [row[name] for row in other]
    assert [row["loss"] for row in mine] == pytest.approx([row["loss"] for row in other], rel=1e-5)


def test_a_run_whose_data_trains_nothing_says_so_once(recipe, capsys):
    recipe = recipe(
        run={"steps": 3},
        objective={"kind": "next_token", "weights": {"text": 0, "structure": 0, "code": 0}},
    )

    (end,) = run_job(recipe)

    assert end.code == 0
    assert end.said.count("trains nothing: ") == 1
    assert "nothing trained: 1 times, last at step 1" in say(capsys, "status", recipe.run.dir)
