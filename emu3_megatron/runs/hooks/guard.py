"""A hook that skips bad steps (not finite, or a spike) and ends a run after too many of them."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch.distributed as dist

from emu3_megatron.checkpoints.folders import tracked, verify
from emu3_megatron.checkpoints.state import Saved, State, load_state
from emu3_megatron.config.runs import GuardConfig
from emu3_megatron.errors import DIVERGED, RunEnded
from emu3_megatron.files import write_json
from emu3_megatron.parallel.votes import any_rank
from emu3_megatron.runs.hooks.saving import SaveCheckpoints
from emu3_megatron.runs.interfaces import Hook, Run, StepResult, Verdict

NOT_FINITE, SPIKE = "not finite", "spike"

# A median absolute deviation of normal numbers is this part of their standard deviation.
_MAD_OF_SIGMA = 0.6745
# Below this share of the median, differences count as noise: a flat loss has no deviation at all.
_LEAST_MAD = 1e-3


class Guard(Hook):
    """Judges each step before it moves the weights, and ends a run after too many bad ones.

    A spike is a loss or gradient norm whose robust z-score over the last `window` steps that were
    taken is above the threshold: (x - median) / (MAD / 0.6745). It is looked for once half the
    window has been seen.

    The number of a bad step, its sequences and its place in the schedule are used up: weights and
    Adam's states alone stay what they were, or go back to the last checkpoint's.

    Args:
        saves: asked to finish a pending checkpoint before going back to it.
    """

    name = "guard"
    order = 10  # before any save: a run that ends here must not have saved the step

    def __init__(self, config: GuardConfig, saves: SaveCheckpoints):
        self.config, self.saves = config, saves
        self.past: dict[str, deque[float]] = {}
        self.in_a_row = 0
        self.returns: list[str] = []  # checkpoints gone back to, as long as it is the same one

    def judge(self, values: Mapping[str, float], told: bool = False) -> Verdict:
        """Whether a step may move the weights, and whether the run is to leave after it.

        The one vote of a step: every rank must ask.

        Args:
            values: losses and gradient norms by name.
            told: this rank was told to leave.
        """
        is_finite = all(math.isfinite(value) for value in values.values())
        is_spike = is_finite and self._is_spike(values)
        saves = self.saves.is_due_by_the_clock()
        not_finite, spike, leaves, saves = any_rank(not is_finite, is_spike, told, saves)
        if not_finite or spike:
            return Verdict(NOT_FINITE if not_finite else SPIKE, leaves, saves)
        for name, value in values.items():
            self._past(name).append(value)
        return Verdict(None, leaves, saves)

    def _past(self, name: str) -> deque[float]:
        return self.past.setdefault(name, deque(maxlen=self.config.window))

    def _is_spike(self, values: Mapping[str, float]) -> bool:
        if self.config.spikes == "ignore":
            return False
        scores = [
            z_score(value, self._past(name))
            for name, value in values.items()
            if len(self._past(name)) >= max(1, self.config.window // 2)
        ]
        return max(scores, default=0.0) > self.config.threshold

    def after_step(self, run: Run, step: int, result: StepResult, is_last: bool) -> None:
        trouble = result.verdict.trouble
        if trouble is None:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self._write_down(run, step, result)
        if trouble == SPIKE and self.config.spikes == "rollback":
            self._roll_back(run, step)
        if max(self.in_a_row, len(self.returns)) >= self.config.patience:
            run.events.add("gave up", step, details=f"{self.in_a_row} bad steps in a row")
            raise RunEnded(
                f"{run.folder}: step {step} was bad ({trouble}), "
                f"{self.in_a_row} in a row; {_dump(run, step)} says what it was trained on",
                DIVERGED,
            )

    def _write_down(self, run: Run, step: int, result: StepResult) -> None:
        ranks: list[Any] = [None] * run.mesh.size
        mine = {
            "rank": run.mesh.rank,
            "data": run.mesh.data_rank,
            "tensor": run.mesh.tensor_rank,
            "context": run.mesh.context_rank,
            "micro_batches": result.details,
        }
        dist.all_gather_object(ranks, mine)
        loss, grad_norm = result.metrics["loss"], result.metrics["grad_norm"]
        found = {
            "step": step,
            "reason": result.verdict.trouble,
            "loss": str(loss),
            "grad_norm": str(grad_norm),
            "ranks": ranks,
        }
        run.try_to_write("skipped step", step, lambda: write_json(_dump(run, step), found))
        words = f"{result.verdict.trouble}: loss {loss:.4g}, gradient norm {grad_norm:.4g}"
        run.events.add("skipped", step, f"not taken, {words}; see {_dump(run, step)}", why=words)

    def _roll_back(self, run: Run, step: int) -> None:
        """Weights and Adam's states of the last checkpoint; step, data and schedule go on."""
        self.saves.finish(run, step)
        path = tracked(run.folder / "checkpoints")
        if path is None:
            return
        verify(path)
        back_to = load_state(path, {"trainer": run.trainer})["step"]
        self.returns = [*(name for name in self.returns if name == path.name), path.name]
        words = f"weights are those of step {back_to} again; data goes on behind step {step}"
        run.events.add("rolled back", step, words, to=back_to)

    def state_dict(self, saved: Saved | None = None) -> State:
        """With it a resumed run judges as the one that was stopped would have."""
        return {
            "past": {name: list(values) for name, values in self.past.items()},
            "in_a_row": self.in_a_row,
            "returns": self.returns,
        }

    def load_state_dict(self, state: State) -> None:
        self.past = {
            name: deque(values, maxlen=self.config.window) for name, values in state["past"].items()
        }
        self.in_a_row, self.returns = state["in_a_row"], list(state["returns"])


def _dump(run: Run, step: int) -> Path:
    return run.folder / "skipped" / f"step-{step:08d}.json"


def z_score(value: float, past: Sequence[float]) -> float:
    """Robust z-score of a value among past ones."""
    middle = median(past)
    deviation = median(abs(x - middle) for x in past)
    return _MAD_OF_SIGMA * (value - middle) / max(deviation, _LEAST_MAD * abs(middle), 1e-30)
