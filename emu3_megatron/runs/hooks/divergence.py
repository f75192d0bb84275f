"""A hook that says when nothing is learned, or what was learned is lost."""

from collections import deque
from statistics import median

from emu3_megatron.checkpoints.state import Saved, State
from emu3_megatron.runs.interfaces import Hook, Run, StepResult

_RECENT = 20  # steps whose median loss counts as today's
# Today's loss as a share of the first step's, above which it is said: of a model that knew nothing,
# and of one that was trained before, whose loss may well stay as it is.
_OF_NEW, _OF_TRAINED = 0.98, 1.25


class WatchLoss(Hook):
    """Says once that the loss is no lower than at the start: the learning rate is too high, mostly.

    Args:
        warmup_steps: of the schedule; before its end and some steps more nothing is said.
        is_new: the run starts from random weights.
    """

    name = "watching the loss"
    order = 15  # before any save, as it has state

    def __init__(self, warmup_steps: int, is_new: bool):
        self.warmup_steps = warmup_steps
        self.limit = _OF_NEW if is_new else _OF_TRAINED
        self.first: float | None = None
        self.recent: deque[float] = deque(maxlen=_RECENT)
        self.was_said = False

    def before_training(self, run: Run, step: int) -> None:
        if step and self.first is None:  # an earlier version began the run
            self.limit = _OF_TRAINED

    def after_step(self, run: Run, step: int, result: StepResult, is_last: bool) -> None:
        if result.verdict.trouble:
            return
        loss = result.metrics["loss"]
        if self.first is None:
            self.first = loss
        self.recent.append(loss)
        if len(self.recent) == _RECENT and step > self.warmup_steps + _RECENT:
            self._judge(run, step, self.first, result.metrics)

    def _judge(self, run: Run, step: int, start: float, metrics: dict[str, float]) -> None:
        today = median(self.recent)
        if self.was_said or today <= self.limit * start:
            return
        self.was_said = True
        rate = f" (now {metrics['lr']:.3g})" if "lr" in metrics else ""
        run.events.add(
            "no lower loss",
            step,
            f"the loss is {today:.4g}, after {start:.4g} in the first step: nothing is learned, "
            f"or it is lost; lower optimizer.lr{rate}, or raise optimizer.schedule.warmup_steps",
            start=start,
            loss=today,
        )

    def state_dict(self, saved: Saved | None = None) -> State:
        return {"first": self.first, "recent": list(self.recent), "was_said": self.was_said}

    def load_state_dict(self, state: State) -> None:
        self.first, self.was_said = state["first"], state["was_said"]
        self.recent = deque(state["recent"], maxlen=_RECENT)
