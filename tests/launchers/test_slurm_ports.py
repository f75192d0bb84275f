"""The port on which the ranks of a Slurm job meet, chosen by the launcher without a Slurm."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
LAUNCHERS = {
    "slurm_emu3.sh": ("srun", "echo $MASTER_PORT; exit 0"),
    "prepare.slurm": ("srun", "echo ${RAY_ADDRESS#*:} >$SEEN; kill $PPID"),
}


@pytest.fixture(params=LAUNCHERS)
def port_of(request, tmp_path):
    """The port that a launcher gives a job, by the job's number."""
    name, command = LAUNCHERS[request.param]
    stand_ins = {name: command, "scontrol": "echo localhost", "sleep": "exec /bin/sleep 0.05"}
    for program, script in stand_ins.items():
        path = tmp_path / program
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)

    def port(job):
        seen = tmp_path / "seen"
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SEEN": str(seen),
            "SLURM_JOB_ID": str(job),
            "SLURM_JOB_NODELIST": "localhost",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_CPUS_ON_NODE": "1",
        }
        command = ["bash", str(TOOLS / request.param), "recipe"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60, encoding="utf-8"
        )
        return int(seen.read_text(encoding="utf-8") if seen.exists() else done.stdout)

    return port


@pytest.mark.parametrize("job", [1, 12_767, 12_768, 19_999, 20_000, 7_654_321])
def test_no_job_gets_a_port_that_linux_gives_to_connections(job, port_of):
    first, last = 1_024, 32_767  # above them Linux's own begin

    assert first < port_of(job) <= last


def test_a_port_in_use_is_passed_over(port_of):
    job = 54_321
    free = port_of(job)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free))
        taken.listen()
        assert port_of(job) == free + 1
