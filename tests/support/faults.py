"""Training jobs that are meant to go wrong: processes whose ends are results, not failures."""

import contextlib
import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from emu3_megatron.config import Recipe
from support.ports import free_port
from support.processes import _context


def nothing() -> None:
    """The fault of a job without one."""


def spoil(steps: Container[int], factor: float, on_rank: int = 0) -> None:
    """Multiply one rank's loss of some steps, and its gradients, through the divisor of both."""
    import torch

    from emu3_megatron.training.trainer import DecoderTrainer

    forward, step = DecoderTrainer.forward, DecoderTrainer.step
    now = [0]

    def stepping(self, current, batches, judge):
        now[0] = current
        return step(self, current, batches, judge)

    def spoilt(self, decoder, batch, denominators):
        if now[0] not in steps or torch.distributed.get_rank() != on_rank:
            return forward(self, decoder, batch, denominators)
        loss, sums = forward(self, decoder, batch, denominators / factor)
        return loss, {**sums, "loss": sums["loss"] * factor}

    DecoderTrainer.forward, DecoderTrainer.step = spoilt, stepping


def slowed(owner: Any, name: str, seconds: float) -> None:
    """Let a function take longer, and one call wait for the other, as a disk does."""
    function, one_by_one = getattr(owner, name), threading.Lock()

    @functools.wraps(function)  # Megatron looks at its signature
    def slow(*arguments: Any, **settings: Any) -> Any:
        with one_by_one:
            time.sleep(seconds)
        return function(*arguments, **settings)

    setattr(owner, name, slow)


@dataclass
class Rank:
    """A process of a job: how it ended, and what it said."""

    code: int | None
    said: str


class Job:
    """`train(recipe)` in several processes, each of which first calls `fault()`."""

    def __init__(
        self,
        recipe: Recipe,
        ranks: int = 1,
        fault: Callable[[], None] = nothing,
        accept: bool = False,
    ):
        port = free_port()
        self.folder = recipe.run.dir
        self.outputs = [self.folder.parent / f"said-{time.time_ns()}-{i}" for i in range(ranks)]
        self.processes = [
            _context.Process(target=_enter, args=(rank, ranks, port, output, recipe, fault, accept))
            for rank, output in enumerate(self.outputs)
        ]
        for process in self.processes:
            process.start()

    def wait(self, seconds: float = 120) -> list[Rank]:
        """Every rank's end; a rank that does not end by itself has code None and is killed."""
        end = time.monotonic() + seconds
        codes = []
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
            codes.append(process.exitcode)
        for process in self.processes:
            process.kill()
            process.join()
        said = [path.read_text(encoding="utf-8") if path.exists() else "" for path in self.outputs]
        return [Rank(code, text) for code, text in zip(codes, said, strict=True)]

    def until(self, condition: Callable[[], Any], seconds: float = 60) -> None:
        """Wait for something to happen while the job runs."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the job did not get there"
            assert any(process.is_alive() for process in self.processes), "the job ended before"
            time.sleep(0.01)

    def descendants(self) -> list[psutil.Process]:
        """Processes that the ranks have started and that live."""
        found = []
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += psutil.Process(process.pid).children(recursive=True)
        return found


def run_job(*arguments: Any, **settings: Any) -> list[Rank]:
    return Job(*arguments, **settings).wait()


def in_a_namespace(command: str) -> subprocess.CompletedProcess[str]:
    """Run a command that may mount what only it sees; it fails where nobody may."""
    unshare = ["unshare", "--mount", "--map-root-user", "sh", "-c", command]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        unshare, env=environment, capture_output=True, text=True, timeout=300, encoding="utf-8"
    )


def events(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    path = folder / "events.jsonl"
    found = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if path.exists()
        else []
    )
    return [event for event in found if kind in (None, event["event"])]


def losses(folder: Path) -> dict[int, float]:
    """Loss by step, from metrics.jsonl."""
    rows = [
        json.loads(line)
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def steps_of(folder: Path) -> list[int]:
    """Steps of the checkpoints that are complete under their name."""
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*"))


def latest(folder: Path) -> int:
    return int((folder / "checkpoints" / "latest").read_text(encoding="utf-8").strip()[5:])


def weights(checkpoint: Path) -> dict[str, Any]:
    """All tensors of a checkpoint, optimizer's too, as one process reads them."""
    from support.processes import run_processes

    return run_processes(_read_tensors, 1, checkpoint)[0]


def _read_tensors(checkpoint: Path) -> dict[str, Any]:
    import torch
    from megatron.core import dist_checkpointing

    from emu3_megatron import parallel

    parallel.start()
    loaded = dist_checkpointing.load_plain_tensors(str(checkpoint))
    tensors = {name: value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def _enter(
    rank: int,
    ranks: int,
    port: int,
    output: Path,
    recipe: Recipe,
    fault: Callable[[], None],
    accept: bool,
) -> None:
    import torch

    from emu3_megatron.errors import InputError, RunEnded

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    with output.open("w", buffering=1, encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        from emu3_megatron.cli.train import run_training

        fault()
        try:
            run_training(recipe, accept)
        except InputError as error:
            print(f"emu3: {error}", flush=True)
            os._exit(2)
        except RunEnded as ended:
            print(f"emu3: {ended}", flush=True)
            os._exit(ended.code)
        os._exit(0)
