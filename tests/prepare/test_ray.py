"""Ray that does not start, or is not there: one line each."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from emu3_megatron.config.prepare import RunConfig
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.executors import run_tasks, start_ray


class OneTask:
    size = 1


def test_an_address_where_nobody_listens_is_named_at_once():
    with pytest.raises(InputError, match=r"run.address=127.0.0.1:1: no Ray cluster .*refused"):
        start_ray(RunConfig(address="127.0.0.1:1"))


def test_a_ray_that_does_not_start_is_one_line(monkeypatch):
    def init(**settings):
        raise RuntimeError("The current node timed out\nduring startup")

    monkeypatch.setattr("ray.init", init)

    with pytest.raises(InputError, match=r"Ray does not start; .*timed out during startup"):
        start_ray(RunConfig())


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(InputError, match=r"pip install 'emu3-megatron\[prepare\]'"):
        run_tasks(lambda: print, [OneTask()], RunConfig(), "tasks/item")


@pytest.mark.slow
def test_a_cluster_that_died_is_not_waited_for():
    code = (
        "from emu3_megatron.prepare.executors import start_ray\n"
        "from emu3_megatron.config.prepare import RunConfig\n"
        "start_ray(RunConfig())"
    )
    with tempfile.TemporaryDirectory() as folder:  # sockets want a shorter path than tmp_path
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1", encoding="utf-8")
        environment = {**os.environ, "RAY_TMPDIR": folder}

        done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=100)

    assert done.returncode == 0
