"""A real Slurm on this machine: its own controller, two node daemons and keys, in one folder."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.ports import free_port

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")

# Two partitions on the same nodes: a job of `high` sends those of `low` away, after a grace time.
CONFIG = """\
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldPort={ports[0]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
GresTypes=gpu
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SchedulerParameters=bf_interval=1,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n0 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 Gres=gpu:8
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 Gres=gpu:8
PartitionName=low Nodes=n0,n1 Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=n0,n1 PriorityTier=10 PreemptMode=OFF
"""


class Slurm:
    """Commands against the test's own cluster."""

    def __init__(self, folder: Path):
        self.folder = folder
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": path,
            "MASTER_ADDR": "127.0.0.1",  # the nodes' names mean nothing to the resolver
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return (done.stdout + done.stderr).strip()

    def submit(self, *arguments: str) -> str:
        return self.run("sbatch", "--parsable", "--output=%j.log", *arguments)

    def job(self, number: str) -> dict[str, str]:
        words = self.run("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def log(self, number: str) -> str:
        return (self.folder / f"{number}.log").read_text(encoding="utf-8")

    def wait(
        self, number: str, done: Callable[[dict[str, str]], Any], seconds: float = 120
    ) -> None:
        deadline = time.monotonic() + seconds
        while not done(self.job(number)):
            assert time.monotonic() < deadline, f"{self.job(number)}\n{self.log(number)}"
            time.sleep(0.3)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if os.geteuid():
        pytest.skip("Slurm's daemons want root here")
    if missing := [name for name in DAEMONS if not _where(name)]:
        # Where one command would install it, its absence is no reason to pass.
        leave = pytest.fail if shutil.which("apt-get") else pytest.skip
        leave(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    folder = tmp_path_factory.mktemp("slurm")
    cluster = Slurm(folder)
    ports = [free_port() for _ in range(3)]
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder, ports=ports), encoding="utf-8")
    (folder / "gres.conf").write_text(
        f"NodeName=n[0-1] Name=gpu File={folder}/gpu[0-7]\n", encoding="utf-8"
    )
    for i in range(8):
        (folder / f"gpu{i}").touch()  # in the place of a device
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    munge = [f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
    munge += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log"]
    daemons = [
        ["munged", "--foreground", "--force", f"--seed-file={folder}/munged.seed", *munge],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "n0"],
        ["slurmd", "-D", "-N", "n1"],
    ]
    running = []
    try:
        for name, *arguments in daemons:
            command = [_where(name), *arguments]
            log = (folder / f"daemon-{len(running)}.log").open("w", encoding="utf-8")
            running.append(
                subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log)
            )
            time.sleep(1)
        _wait_for_nodes(cluster)
        yield cluster
    finally:
        subprocess.run(["scancel", "-u", "root"], env=cluster.environment)
        for process in reversed(running):
            process.terminate()
            process.wait()


def _where(daemon: str) -> str | None:
    return shutil.which(daemon, path=f"/usr/sbin:{os.environ['PATH']}")


def _wait_for_nodes(cluster: Slurm, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while "idle" not in cluster.run("sinfo", "-h", "-N", "-p", "low", "-o", "%T"):
        assert time.monotonic() < deadline, cluster.run("sinfo", "-N", "-l")
        time.sleep(0.3)
