"""Writers that fail: every one but `metrics.jsonl` may, and the run goes on."""

import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from support.faults import events, losses, run_job

from emu3_megatron.errors import InputError
from emu3_megatron.runs.events import Events
from emu3_megatron.runs.metrics.offline import records
from emu3_megatron.runs.metrics.opening import open_writers
from emu3_megatron.runs.metrics.trackers import check_trackers


def row(step):
    return {"step": step, "loss": 1 / step, "lr": 1e-3, "tokens_per_second": 10.0}


def opened(recipe, resumed_step=0):
    recipe.run.dir.mkdir(exist_ok=True)
    return open_writers(recipe.run, {}, resumed_step, Events(recipe.run.dir, speaks=True))


@contextmanager
def files_no_longer_than(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_run_whose_tensorboard_cannot_be_written_goes_on_and_says_so_once(recipe):
    recipe = recipe(run={"tensorboard": True})
    recipe.run.dir.mkdir()
    (recipe.run.dir / "tensorboard").write_text(
        "a file where the folder should be", encoding="utf-8"
    )

    (end,) = run_job(recipe)

    assert end.code == 0, end.said
    assert len(losses(recipe.run.dir)) == 8
    (event,) = events(recipe.run.dir, "writer failed")
    assert event["writer"] == "TensorBoard"
    assert end.said.count("TensorBoard failed (FileExistsError: ") == 1


def test_tensorboard_on_a_disk_that_fills_up_leaves_the_rows_to_metrics_jsonl(recipe):
    recipe = recipe(run={"tensorboard": True})
    writers = opened(recipe)
    (file,) = (recipe.run.dir / "tensorboard").iterdir()
    with files_no_longer_than(max(500, file.stat().st_size)):
        for step in (1, 2, 3):
            for writer in writers:
                writer.write(row(step))
    for writer in writers:
        writer.close()

    assert sorted(losses(recipe.run.dir)) == [1, 2, 3]
    assert [event["why"] for event in events(recipe.run.dir, "writer failed")] == [
        "OSError: [Errno 27] File too large"
    ]


def test_samples_that_a_full_disk_does_not_take_are_an_event(recipe, mesh, capsys):
    from emu3_megatron.runs.interfaces import Run

    recipe = recipe()
    recipe.run.dir.mkdir()
    run = SimpleNamespace(events=Events(recipe.run.dir, speaks=True))

    def save():
        raise OSError(28, "No space left on device", "0.png")

    assert Run.try_to_write(run, "samples", 3, save) is None
    assert Run.try_to_write(run, "samples", 4, lambda: "drawn") == "drawn"
    (event,) = events(recipe.run.dir, "not written")
    assert (event["step"], event["why"]) == (3, "samples: No space left on device")


# wandb


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    module = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HOME", str(tmp_path))  # no key of this machine's
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    module.teardown()  # it reads the environment once
    yield module
    module.teardown()


def test_a_run_without_a_key_of_wandb_is_refused_in_one_line(recipe, wandb):
    with pytest.raises(InputError, match=r"^run\.wandb=emu3 needs a key .* WANDB_MODE=offline$"):
        check_trackers(recipe(run={"wandb": "emu3"}).run)


@pytest.mark.parametrize(
    "variable", [{"WANDB_MODE": "offline"}, {"WANDB_API_KEY": "a" * 40}], ids=["offline", "key"]
)
def test_a_key_or_offline_mode_is_enough(variable, recipe, wandb, monkeypatch):
    for name, value in variable.items():
        monkeypatch.setenv(name, value)

    check_trackers(recipe(run={"wandb": "emu3"}).run)


def test_the_key_is_asked_for_before_the_model_is_built(recipe, wandb):
    (end,) = run_job(recipe(run={"wandb": "emu3"}), fault=refuse_to_build)

    assert (end.code, end.said.count("\n")) == (2, 1), end.said
    assert "needs a key of wandb" in end.said


def refuse_to_build():
    from emu3_megatron.training import stage

    stage._assemble = lambda *arguments: pytest.fail("the model is being built")


def test_wandb_without_a_network_is_an_event(recipe, wandb, monkeypatch):
    def init(**settings):
        raise wandb.errors.CommError("Run initialization has timed out after 90.0 sec.\n")

    monkeypatch.setattr(wandb, "init", init)
    recipe = recipe(run={"wandb": "emu3"})

    for writer in opened(recipe):
        writer.write(row(1))

    (event,) = events(recipe.run.dir, "writer failed")
    assert event["why"] == "CommError: Run initialization has timed out after 90.0 sec."
    assert list(losses(recipe.run.dir)) == [1]


LOGS = """
import sys
from pathlib import Path
import psutil
from emu3_megatron.config.runs import RunConfig
from emu3_megatron.runs.events import Events
from emu3_megatron.runs.metrics.opening import open_writers

folder, first, last, kills = Path(sys.argv[1]), *map(int, sys.argv[2:])
config = RunConfig(dir=folder, steps=9, wandb="emu3")
writers = open_writers(config, {}, first, Events(folder, speaks=True))
for process in psutil.Process().children(recursive=True) if kills else []:
    process.kill()
    process.wait()
for step in range(first + 1, last + 1):
    for writer in writers:
        writer.write({"step": step, "filler": "x" * 9000, "start": first})
for writer in writers:
    writer.close()
"""


def log_offline(folder, first, last, kills=False):
    pytest.importorskip("wandb")
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    command = [sys.executable, "-c", LOGS, folder, first, last, int(kills)]
    subprocess.run([*map(str, command)], check=True, env=environment, capture_output=True)


def test_wandb_whose_process_is_killed_is_an_event(tmp_path):
    log_offline(tmp_path, 0, 20, kills=True)

    (event,) = events(tmp_path, "writer failed")
    assert event["writer"] == "wandb"
    assert len((tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 20


def test_steps_that_a_resumed_run_takes_anew_are_once_in_wandbs_offline_files(tmp_path):
    """Rows are long: the place of the cut lies in a later block of the file."""
    Record = pytest.importorskip("wandb.proto.wandb_internal_pb2").Record
    log_offline(tmp_path, 0, 12)
    log_offline(tmp_path, 8, 14)

    steps = []
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    for file in files:
        found = [Record.FromString(data) for _, data in records(file.read_bytes())]
        steps.append([r.history.step.num for r in found if r.HasField("history")])
    assert steps == [[*range(1, 9)], [*range(9, 15)]]


@pytest.mark.parametrize("rewinds", [True, False])
def test_the_servers_run_is_rewound_to_the_last_row_that_is_kept(
    rewinds, recipe, wandb, monkeypatch
):
    asked = []

    def init(**settings):
        asked.append({key: settings[key] for key in ("resume", "resume_from") if key in settings})
        if "resume_from" in settings and not rewinds:
            raise wandb.errors.CommError("unknown field rewindRun")
        return SimpleNamespace(log=lambda values, step: None, finish=lambda: None)

    monkeypatch.setattr(wandb, "init", init)
    recipe = recipe(run={"wandb": "emu3"})
    for resumed_step in (0, 3):
        for writer in opened(recipe, resumed_step):
            for step in (resumed_step + 1, resumed_step + 2):
                writer.write(row(step))
            writer.close()

    assert asked[0] == {"resume": "allow"}
    assert asked[1]["resume_from"].endswith("?_step=2")
    assert asked[2:] == ([] if rewinds else [{"resume": "allow"}])
