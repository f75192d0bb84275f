"""Kills at random moments, and a Ray cluster of two nodes: the same bytes. Minutes long."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from PIL import Image
from support.ports import free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(tmp_path, tokenizer):
    """A function that writes a recipe over photos and text; returns its path."""
    photos, texts = tmp_path / "photos", tmp_path / "texts"
    photos.mkdir()
    texts.mkdir()
    for i in range(48):
        coarse = np.random.default_rng(i).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((256, 192), 0).save(photos / f"{i:02}.png")
        (photos / f"{i:02}.txt").write_text(f"number {i}", encoding="utf-8")
    (texts / "a.txt").write_text("some words", encoding="utf-8")
    tokenizer.save(tmp_path / "tokenizer")

    def write(name, **run):
        values = {
            "out": str(tmp_path / name),
            "model": "emu3-tiny",
            "tokenizer": str(tmp_path / "tokenizer"),
            "shard_bytes": 8000,
            "images": {
                "source": str(photos),
                "min_side": 32,
                "min_quality": 0,
                "ocr": False,
                "area": 64 * 48,
            },
            "text": {"source": str(texts)},
            "packs": [{"context": 256, "kinds": ["images", "text"]}],
            "run": {"executor": "local", "task_items": 4, **run},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write


def start(path):
    command = [sys.executable, "-m", "emu3_megatron", "prepare", "all", str(path)]
    return subprocess.Popen(command, start_new_session=True)


def contents(folder):
    """Every file that a user sees, by its path."""
    seen = (p for p in sorted(folder.rglob("*")) if p.is_file() and ".work" not in p.parts)
    seen = (p for p in seen if p.name != "report.json")  # which holds times
    return {p.relative_to(folder): p.read_bytes() for p in seen}


def test_five_kills_at_random_moments_change_no_byte(recipe, tmp_path):
    began = time.monotonic()
    assert start(recipe("whole")).wait() == 0
    seconds = time.monotonic() - began
    path, kills, moments = recipe("killed"), 0, random.Random(0)

    while kills < 5:
        process = start(path)
        try:
            process.wait(timeout=moments.uniform(0.3, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        else:  # it was done before: anew, so that every kill is one
            assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
            shutil.rmtree(tmp_path / "killed")
    assert start(path).wait() == 0

    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert list((tmp_path / "killed").rglob("*.tmp")) == []


RAY = os.path.join(os.path.dirname(sys.executable), "ray")


@pytest.fixture
def cluster():
    """Address of a Ray cluster: two nodes of two CPUs, both on this machine."""
    address = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    start = [RAY, "start", "--block", "--num-cpus=2", f"--object-store-memory={200 << 20}"]
    head = [*start, "--head", f"--port={address.split(':')[1]}", "--include-dashboard=false"]
    processes = []
    for nodes, command in enumerate((head, [*start, f"--address={address}"]), 1):
        processes.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
            )
        )
        wait_for_nodes(address, nodes, environment)
    yield address
    for process in processes:
        os.killpg(process.pid, signal.SIGTERM)
    for process in processes:
        process.wait()


def wait_for_nodes(address, number, environment):
    status = [RAY, "status", f"--address={address}"]
    for _ in range(60):
        done = subprocess.run(
            status, env=environment, capture_output=True, text=True, encoding="utf-8"
        )
        if len(re.findall(r"^ *1 node_", done.stdout, re.MULTILINE)) == number:
            return
        time.sleep(1)
    raise AssertionError(f"{number} nodes did not come up: {done.stdout}{done.stderr}")


def test_two_nodes_of_ray_make_the_same_bytes(recipe, tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert start(recipe("alone")).wait() == 0
    assert start(recipe("cluster", executor="ray", address=cluster)).wait() == 0

    assert contents(tmp_path / "cluster") == contents(tmp_path / "alone")
