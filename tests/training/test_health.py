"""GPUs are looked at before the first step, through a stand-in for NVML."""

import json
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from support.faults import events, run_job
from support.tiny import make_packs, tiny_recipe

from emu3_megatron.cli import main
from emu3_megatron.runs.events import Events
from emu3_megatron.runs.health import gpu_faults, load_nvml, try_all_reduce
from emu3_megatron.runs.hooks.health import CheckHealth
from emu3_megatron.runs.slow_ranks import ROWS, SlowRank
from emu3_megatron.runs.status import status
from emu3_megatron.training.trainer import DecoderTrainer


class NVMLError(Exception):
    pass


class FakeNvml:
    """A healthy GPU with four links, unless a test says otherwise."""

    NVMLError = NVMLError

    def __init__(self, reasons=0, ecc=0, rows=(0, 0, 0, 0), links=(1, 1, 1, 1)):
        self.reasons, self.ecc, self.rows, self.links = reasons, ecc, rows, links

    def nvmlInit(self):
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid):
        assert uuid == "GPU-1"
        return uuid

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu):
        return self.reasons

    def nvmlDeviceGetTotalEccErrors(self, gpu, kind, counter):
        assert (kind, counter) == (1, 0)
        if self.ecc is None:
            raise NVMLError("not supported")
        return self.ecc

    def nvmlDeviceGetRemappedRows(self, gpu):
        return self.rows

    def nvmlDeviceGetNvLinkState(self, gpu, link):
        if link >= len(self.links):
            raise NVMLError("invalid argument")
        return self.links[link]


@pytest.mark.parametrize(
    ("gpu", "faults"),
    [
        ({}, []),
        ({"reasons": 0x01}, []),  # idle
        ({"reasons": 0x48}, ["hardware slowdown", "too hot (hardware slowdown)"]),
        ({"ecc": 1234}, ["ECC: 1,234 errors that could not be corrected"]),
        ({"ecc": None, "links": ()}, []),  # a GPU without them
        ({"rows": (1, 1, 1, 0)}, ["rows wait to be remapped; reset the GPU"]),
        ({"rows": (0, 9, 0, 1)}, ["a row could not be remapped; replace the GPU"]),
        ({"links": (1, 0, 1, 0)}, ["NVLink: 2 of 4 links are down"]),
        ({"links": (0, 0, 0, 0)}, []),  # no bridge
    ],
)
def test_faults_of_a_gpu_are_named(gpu, faults):
    found = gpu_faults(FakeNvml(**gpu), "GPU-1")

    assert len(found) == len(faults)
    assert all(fault in said for fault, said in zip(faults, found, strict=True))


def test_without_nvml_nothing_is_looked_at(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert load_nvml() is None

    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert load_nvml() is fake


def test_an_all_reduce_is_tried_for_its_sum_and_its_rate(mesh):
    _, faults = try_all_reduce(torch.device("cpu"))

    assert faults == []


def test_a_wrong_sum_is_a_fault(mesh, monkeypatch):
    monkeypatch.setattr("torch.distributed.all_reduce", lambda values: values.add_(1))

    assert try_all_reduce(torch.device("cpu"))[1] == ["all-reduce: a wrong sum"]


def test_what_is_found_is_an_event_and_stands_in_the_status_until_the_next_start(mesh, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {"run": {"steps": 5}}}), "utf-8")
    run = SimpleNamespace(events=Events(tmp_path, speaks=True), mesh=SimpleNamespace(size=1))

    CheckHealth().tell(run, 0, True, ["NVLink: 2 of 4 links are down"], 180.0)
    assert any(line.endswith(": NVLink: 2 of 4 links are down") for line in status(tmp_path))

    CheckHealth().tell(run, 3, False, [], 0.0)
    assert not any("NVLink" in line for line in status(tmp_path))
    assert events(tmp_path, "health")[-1]["not_looked_at"] == 1


# Slow ranks


def test_a_rank_is_slow_when_several_rows_say_so():
    slow = SlowRank()
    rows = [[0.5, 0.1, 0.6]] * ROWS + [[0.5, 0.1, 0.6]] + [[0.5, 0.49, 0.6]] + [[0.5, 0.1, 0.6]]

    found = [slow.see(waits, 1.0) for waits in rows]

    assert found == [None] * (ROWS - 1) + [(1, pytest.approx(0.4))] + [None] * 3
    assert SlowRank().see([0.3], 1.0) is None
    assert SlowRank().see([float("nan")] * 2, 1.0) is None


def dawdle_on_rank_1():
    forward = DecoderTrainer.forward

    def slow(self, *arguments):
        if torch.distributed.get_rank() == 1:
            time.sleep(0.15)
        return forward(self, *arguments)

    DecoderTrainer.forward = slow


def test_a_slow_rank_is_named_in_the_status(tmp_path, capsys):
    recipe = tiny_recipe(make_packs(tmp_path), tmp_path / "run", run={"steps": 6})

    ends = run_job(recipe, ranks=2, fault=dawdle_on_rank_1)

    assert [end.code for end in ends] == [0, 0], ends
    assert [event["rank"] for event in events(tmp_path / "run", "slow rank")] == [1]
    assert events(tmp_path / "run", "health")[0]["skipped"] == "no GPU"
    main(["status", str(tmp_path / "run")])
    assert "slow rank 1 on " in capsys.readouterr().out
