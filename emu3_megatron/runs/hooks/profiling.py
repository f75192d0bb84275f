"""A hook that profiles chosen steps on chosen ranks into the run folder."""

import pickle
import shlex
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from emu3_megatron.config.runs import ProfileConfig
from emu3_megatron.runs.interfaces import Hook, Run, StepResult

FOLDER = "profiles"


class Profile(Hook):
    """Writes `profiles/step-…-rank-….json.gz`, a trace, and on a GPU `.pickle`, its memory.

    A trace holds the step with the hooks behind it: rows of metrics, saves, samples. A disk that
    does not take it does not end the run.
    """

    name = "profiling"
    order = 110  # behind all others: what it holds begins and ends between two steps

    def __init__(self, config: ProfileConfig):
        self.config = config
        self.profiler: Any = None

    def before_training(self, run: Run, step: int) -> None:
        self._begin(run, step + 1)

    def after_step(self, run: Run, step: int, result: StepResult, is_last: bool) -> None:
        if self.profiler is not None:
            self._end(run, step)
        if not is_last:
            self._begin(run, step + 1)

    def _begin(self, run: Run, step: int) -> None:
        if step not in self.config.steps or run.mesh.rank not in self.config.ranks:
            return
        activities = [ProfilerActivity.CPU]
        if run.mesh.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history()
        self.profiler = profile(activities=activities, profile_memory=True, record_shapes=True)
        self.profiler.start()

    def _end(self, run: Run, step: int) -> None:
        profiler, self.profiler = self.profiler, None
        profiler.stop()
        base = run.folder / FOLDER / f"step-{step:08d}-rank-{run.mesh.rank:05d}"
        try:
            base.parent.mkdir(parents=True, exist_ok=True)
            if run.mesh.device.type == "cuda":
                _write_memory(base.with_suffix(".pickle"))
            profiler.export_chrome_trace(f"{base}.json.gz")
        except (OSError, RuntimeError) as error:
            print(f"{base}: not written ({error}); the run goes on", flush=True)
            return
        print(f"step {step}: profiled; emu3 inspect profile {shlex.quote(str(base))}.json.gz")


def _write_memory(path: Path) -> None:
    """Every allocation since the step began, with its stack."""
    path.write_bytes(pickle.dumps(torch.cuda.memory._snapshot()))
    torch.cuda.memory._record_memory_history(enabled=None)
