"""A hook that ends a DPO run whose reference is not its start, and says when nothing is learned."""

import math

from emu3_megatron.errors import InputError
from emu3_megatron.runs.interfaces import Hook, Run, StepResult

# How far the loss of step 1 may be from that of equal models, at up to 1,000 tokens a pair; the
# rounding of a sum over n tokens grows as sqrt(n). In bf16 it is there in the same layout too: the
# products' sizes, and with them the order of their sums, depend on the rows computed together.
_TOLERANCE = {"fp32": 1e-6, "bf16": 0.02}
_STANDS_STILL = 1e-6


class WatchPreferenceLoss(Hook):
    """Compares `preference_loss` with its value while policy and reference are one model.

    Args:
        at_start: that value: ln 2 of the sigmoid.
        precision: of the recipe.
        warmup_steps: of the schedule.
        noise: what is to be said of a reference of another layout; step 1 is then no reason to end.
    """

    name = "watching the preference loss"
    order = 15  # before any save: a run that ends here must not have saved the step

    def __init__(
        self, at_start: float, precision: str, warmup_steps: int, noise: str | None = None
    ):
        self.at_start, self.precision = at_start, precision
        self.warmup_steps, self.noise = warmup_steps, noise

    def before_training(self, run: Run, step: int) -> None:
        if self.noise:
            run.events.add("reference of another layout", step, self.noise)

    def after_step(self, run: Run, step: int, result: StepResult, is_last: bool) -> None:
        if result.verdict.trouble:
            return
        if step == 1:
            self._check_first(run, result.metrics)
        if step == max(2, self.warmup_steps + 1):
            self._check_that_it_moves(run, step, result.metrics["preference_loss"])

    def _check_first(self, run: Run, metrics: dict[str, float]) -> None:
        found, tokens = metrics["preference_loss"], metrics["num_tokens"] / metrics["num_pairs"]
        allowed = _TOLERANCE[self.precision] * max(1.0, self.at_start, math.sqrt(tokens / 1000))
        if abs(found - self.at_start) <= allowed:
            return
        words = (
            f"preference_loss of step 1 is {found:.7f}, and {self.at_start:.7f} where policy and "
            "reference are one model"
        )
        if self.noise:
            run.events.add("reference differs", 1, f"{words}; the reference is of another layout")
            return
        raise InputError(
            f"{run.folder}: {words}: the reference is not the model that training starts from; "
            "store it anew with emu3 reference, or set objective.reference to "
            "{kind: live, checkpoint: RUN.INIT_FROM}"
        )

    def _check_that_it_moves(self, run: Run, step: int, loss: float) -> None:
        if abs(loss - self.at_start) <= _STANDS_STILL:
            run.events.add(
                "preference loss stands still",
                step,
                f"preference_loss is still {loss:.7f}, as if nothing were learned; raise "
                "optimizer.lr or objective.beta, and look at grad_norm",
            )
