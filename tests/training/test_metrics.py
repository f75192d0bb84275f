"""What a run tells: FLOPs, lines of JSON, TensorBoard, wandb."""

import json
import math
import resource
import sys
import time

import pytest
from PIL import Image
from support.tiny import tiny_recipe

from emu3_megatron.config import ModelConfig, Recipe
from emu3_megatron.errors import InputError
from emu3_megatron.model.flops import flops_per_token
from emu3_megatron.runs.communication import Communication, HostClock
from emu3_megatron.runs.events import Events
from emu3_megatron.runs.metrics.log import Log, Work, finite
from emu3_megatron.runs.metrics.opening import open_writers
from emu3_megatron.runs.metrics.trackers import check_trackers
from emu3_megatron.runs.metrics.writers import JsonLines, ProgressLine


@pytest.fixture
def recipe(tmp_path):
    return tiny_recipe(tmp_path / "none.pack", tmp_path / "run")


def row(step):
    return {"step": step, "loss": 1 / step, "lr": 1e-3, "tokens_per_second": 10.0}


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


# FLOPs


def test_flops_of_a_token_of_the_8b_model():
    model = ModelConfig.model_validate({"preset": "emu3-8b"})

    matrices = flops_per_token(model, 0)
    assert matrices == pytest.approx(46.4e9, rel=1e-3)
    assert flops_per_token(model, 5120) - matrices == pytest.approx(4.0e9, rel=1e-2)
    assert flops_per_token(model, 131_072) - matrices == pytest.approx(103e9, rel=1e-2)


def test_rates_count_the_work_since_the_last_row(mesh, monkeypatch):
    now = 100.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    log = Log(Communication(HostClock()), peak_flops=10_000.0)
    log.start_clocks(5)

    for _ in range(4):
        log.add(Work(tokens=1024, flops=5_000.0))
    now = 102.0
    first = log.measure(9)
    log.add(Work(tokens=1024, flops=5_000.0))
    now = 106.0
    second = log.measure(10)

    assert (first["step_seconds"], first["tokens_per_second"]) == (0.5, 4 * 1024 / 2)
    assert first["mfu"] == 4 * 5_000 / 2 / 10_000
    assert (second["step_seconds"], second["tokens_per_second"]) == (4.0, 1024 / 4)


# metrics.jsonl


def test_a_resumed_run_drops_the_rows_past_its_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path, resumed_step=0)
    for step in (1, 2, 3, 4):
        first.write(row(step))
    first.close()

    resumed = JsonLines(path, resumed_step=2)
    resumed.write(row(3))
    resumed.close()

    assert steps_in(path) == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_rows_are_on_the_disk_at_once(tmp_path):
    writer = JsonLines(tmp_path / "metrics.jsonl", resumed_step=0)
    writer.write(row(1))

    assert json.loads((tmp_path / "metrics.jsonl").read_text(encoding="utf-8")) == row(1)


def test_a_row_that_a_killed_run_left_unfinished_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo', encoding="utf-8")

    JsonLines(path, resumed_step=2).close()

    assert steps_in(path) == [1]


def test_rows_that_a_full_disk_does_not_take_are_written_when_it_does(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    writer = JsonLines(path, resumed_step=0)
    writer.write(row(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for left in (7, 0):  # half a row, none
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + left, hard))
            writer.write(row(2 if left else 3))
            assert steps_in(path) == [1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    writer.write(row(4))

    assert steps_in(path) == [1, 2, 3, 4]
    assert "metrics.jsonl: File too large; its rows are kept" in capsys.readouterr().err


# Rows


def test_rows_leave_out_what_json_cannot_say():
    values = {"step": 3, "loss": math.nan, "grad_norm": math.inf, "lr": 0.0}

    assert finite(values) == {"step": 3, "lr": 0.0}


def test_the_progress_line_bears_a_loss_that_is_no_number(capsys):
    line = ProgressLine(0, 2)
    line.write(finite({**row(1), "loss": math.nan}))
    line.close()

    assert "loss=nan" in capsys.readouterr().err


# Writers


def with_run(recipe, **values):
    return Recipe.model_validate(
        {**recipe.model_dump(), "run": {**recipe.run.model_dump(), **values}}
    )


def open_all(recipe, resumed_step):
    events = Events(recipe.run.dir, speaks=True)
    return open_writers(recipe.run, {"recipe": {}}, resumed_step, events)


def write_rows(recipe):
    writers = open_all(recipe, 0)
    image = recipe.run.dir / "0.png"
    Image.new("RGB", (8, 4), "red").save(image)
    for writer in writers:
        writer.show(1, {"a red square": image})
        writer.write(row(1))
        writer.write(row(2))
        writer.close()


def test_tensorboard_reads_what_was_written(recipe, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_rows(with_run(recipe, tensorboard=True))

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]
    assert "step" not in events.Tags()["scalars"]
    (image,) = events.Images("samples/a red square")
    assert (image.step, image.width, image.height) == (1, 8, 4)


def test_tensorboard_hides_the_steps_that_a_resumed_run_takes_anew(recipe, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = with_run(recipe, tensorboard=True)
    for first, last in ((0, 4), (2, 3)):
        _, board, _ = open_all(recipe, first)
        for step in range(first + 1, last + 1):
            board.write(row(step))  # and not closed: the run is killed

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]


def test_wandb_writes_a_run_offline(recipe, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")

    write_rows(with_run(recipe, wandb="emu3"))

    (run,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    deadline = time.monotonic() + 60  # wandb's own process writes it, in its own time
    while b"tokens_per_second" not in log.read_bytes():
        assert time.monotonic() < deadline, log.read_bytes()
        time.sleep(0.1)
    assert b"a red square" in log.read_bytes()
    assert len([*run.glob("files/media/images/*.png")]) == 1


@pytest.mark.parametrize(
    ("module", "setting"),
    [("torch.utils.tensorboard", {"tensorboard": True}), ("wandb", {"wandb": "emu3"})],
)
def test_a_tracker_that_is_not_installed_is_named(recipe, monkeypatch, module, setting):
    monkeypatch.setitem(sys.modules, module, None)

    (name,) = setting
    with pytest.raises(InputError, match=rf"run\.{name}.* needs .*emu3-megatron\[tracking\]"):
        check_trackers(with_run(recipe, **setting).run)


def test_a_run_without_trackers_writes_metrics_alone(recipe, tmp_path):
    write_rows(recipe)

    assert [path.name for path in (tmp_path / "run").glob("[!0]*")] == ["metrics.jsonl"]
    assert steps_in(tmp_path / "run" / "metrics.jsonl") == [1, 2]
