"""Slurm template of data preparation on a real Slurm: Ray on two nodes, the bytes of a laptop."""

import json
from pathlib import Path

import pytest
import yaml
from support.ports import free_port

from emu3_megatron.cli import main

TEMPLATE = Path(__file__).parents[2] / "tools" / "prepare.slurm"


def write_recipe(folder: Path, name: str) -> Path:
    values = {
        "out": str(folder / name),
        "model": "emu3-tiny",
        "text": {"source": str(folder / "texts"), "range_bytes": 2000},
        "packs": [{"context": 256, "kinds": ["text"]}],
        "run": {"executor": "local"},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[Path, bytes]:
    seen = (p for p in sorted(folder.rglob("*")) if p.is_file() and ".work" not in p.parts)
    seen = (p for p in seen if p.name != "report.json")  # which holds times
    return {path.relative_to(folder): path.read_bytes() for path in seen}


@pytest.mark.slow
def test_ray_over_slurm_makes_the_bytes_of_a_laptop(slurm, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    lines = [json.dumps({"text": f"line {i} of some text"}) for i in range(400)]
    (tmp_path / "texts" / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    main(["prepare", "all", str(write_recipe(tmp_path, "laptop"))])

    # Both nodes are this machine, whose memory two Rays share.
    options = f"RAY_START_OPTIONS=--object-store-memory={100 << 20},MASTER_PORT={free_port()}"
    recipe = write_recipe(tmp_path, "cluster")
    job = slurm.submit(
        "--nodes=2", f"--export=ALL,{options}", str(TEMPLATE), str(recipe), "run.workers=2"
    )
    at_work = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING")
    slurm.wait(job, lambda job: job["JobState"] not in at_work, seconds=500)

    assert slurm.job(job)["JobState"] == "COMPLETED", slurm.log(job)
    assert contents(tmp_path / "cluster") == contents(tmp_path / "laptop")
