"""The Slurm launcher on a real Slurm."""

import json
from pathlib import Path

import pytest
import yaml
from support.processes import run_processes
from support.tiny import make_packs, tiny_recipe

from emu3_megatron.cli import main

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "tools" / "slurm_emu3.sh"
TEMPLATES = sorted(ROOT.glob("examples/*/slurm.sh"))
STEPS = 400
LAYOUT = ("parallel.tensor=2", "parallel.sequence=true")


def write_recipe(folder: Path) -> Path:
    run = {"steps": STEPS, "save_every": STEPS}
    recipe = tiny_recipe(make_packs(folder), folder / "run", run=run)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    return path


def rows_of(run: Path) -> list[dict]:
    file = run / "metrics.jsonl"
    return (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if file.exists()
        else []
    )


def losses_of(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in rows_of(run)]


@pytest.mark.slow
def test_a_preempted_job_saves_is_requeued_and_finishes_as_if_alone(slurm, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path), tmp_path / "run"
    nodes = ("--nodes=2", "--ntasks-per-node=1", "--requeue", "--open-mode=append")
    launch = f"bash {LAUNCHER} train {recipe} {' '.join(LAYOUT)}"
    job = slurm.submit("-p", "low", *nodes, "--wrap", launch)
    slurm.wait(job, lambda job: len(rows_of(run)) > 20)
    slurm.submit("-p", "high", "--nodes=2", "--wrap", "sleep 1")
    slurm.wait(job, lambda job: job["JobState"] == "PENDING" and job["Restarts"] == "1")
    assert 20 < len(rows_of(run)) < STEPS
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm holds it for minutes
    slurm.wait(job, lambda job: job["JobState"] == "COMPLETED", seconds=240)

    run_processes(main, 2, ["train", str(recipe), *LAYOUT, f"run.dir={tmp_path / 'alone'}"])
    assert losses_of(run) == losses_of(tmp_path / "alone")


@pytest.mark.slow
def test_a_job_near_its_time_limit_is_signalled_and_requeued(slurm, tmp_path: Path) -> None:
    recipe, run = write_recipe(tmp_path), tmp_path / "run"
    limits = ("--time=1", "--signal=USR1@45", "--requeue", "--open-mode=append")
    endless = f"run.steps={100 * STEPS}"
    job = slurm.submit(*limits, "--wrap", f"bash {LAUNCHER} train {recipe} {endless}")
    slurm.wait(job, lambda job: job["Restarts"] == "1")
    slurm.run("scancel", job)
    assert (run / "checkpoints" / "latest").is_file()
    assert f"saved and requeued: job {job}" in slurm.log(job)


@pytest.mark.slow
def test_a_run_that_fails_is_not_requeued(slurm, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    job = slurm.submit("--requeue", "--wrap", f"bash {LAUNCHER} train {recipe} data.context=96")
    slurm.wait(job, lambda job: job["JobState"] == "FAILED")
    assert "packed for a context of 128" in slurm.log(job)
    assert slurm.job(job)["Restarts"] == "0"


@pytest.mark.slow
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.parent.name)
def test_slurm_takes_the_templates(slurm, template: Path) -> None:
    slurm.run("sbatch", "--test-only", "--nodes=2", "--exclusive=user", str(template))
