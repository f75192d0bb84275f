"""Hooks that log rows of metrics and the held-out loss."""

from emu3_megatron.checkpoints.state import Saved, State
from emu3_megatron.config.runs import EvaluationConfig, RunConfig
from emu3_megatron.parallel.votes import on_first_rank
from emu3_megatron.runs.heartbeats import read_heartbeats
from emu3_megatron.runs.interfaces import Evaluator, Hook, Run, StepResult
from emu3_megatron.runs.metrics.opening import open_writers
from emu3_megatron.runs.slow_ranks import SlowRank


class LogMetrics(Hook):
    """Writes a row of metrics every `log_every` steps, and before every evaluation."""

    name = "logging"
    order = 0  # before the guard: the step that ends a run has its row

    def __init__(self, config: RunConfig, validation: EvaluationConfig | None):
        self.config, self.validation = config, validation
        self.skipped = 0
        self.said_nothing_is_trained = False
        self.slow = SlowRank()

    def before_training(self, run: Run, step: int) -> None:
        def open_all() -> None:
            run.log.writers += open_writers(self.config, run.about, step, run.events)

        on_first_rank(open_all)
        run.log.start_clocks(step)
        run.communication.is_on = self._is_due(run, step + 1)

    def after_step(self, run: Run, step: int, result: StepResult, is_last: bool) -> None:
        self.skipped += result.verdict.trouble is not None
        self._say_if_nothing_is_trained(run, step, result)
        run.log.add(result.work)
        if is_last or self._is_due(run, step):
            measured = run.log.measure(step)
            self._say_if_one_is_slow(run, step, measured["step_seconds"])
            run.log.write(
                {"step": step, **result.metrics, **measured, "skipped_steps": self.skipped}
            )
        run.communication.is_on = self._is_due(run, step + 1)

    def _say_if_one_is_slow(self, run: Run, step: int, step_seconds: float) -> None:
        if not (found := self.slow.see(run.log.waits, step_seconds)):
            return
        rank, share = found
        beats = read_heartbeats(run.folder) if run.mesh.is_first else []
        host = next((beat["host"] for beat in beats if beat["rank"] == rank), "an unknown host")
        why = f"rank {rank} on {host}: the others wait {share:.0%} of a step for it"
        run.events.add("slow rank", step, why, rank=rank, host=host, why=why)

    def _say_if_nothing_is_trained(self, run: Run, step: int, result: StepResult) -> None:
        """Once a start: zero loss with zero gradient is not learnt, it is weights of zero."""
        loss, grad_norm = (result.metrics.get(name) for name in ("loss", "grad_norm"))
        if loss == grad_norm == 0 and not self.said_nothing_is_trained:
            self.said_nothing_is_trained = True
            words = (
                "trains nothing: loss and gradient are 0; no label of its documents has a weight"
            )
            words += " (objective.weights of their classes, or all of them are context)"
            run.events.add("nothing trained", step, words)

    def _is_due(self, run: Run, step: int) -> bool:
        return step % self.config.log_every == 0 or validates(self.validation, step, run.steps)

    def after_training(self, run: Run) -> None:
        # On all ranks together: a launcher that sees one leave gives the others little time.
        on_first_rank(run.log.close)

    def state_dict(self, saved: Saved | None = None) -> State:
        return {"skipped": self.skipped}

    def load_state_dict(self, state: State) -> None:
        self.skipped = state["skipped"]


def validates(config: EvaluationConfig | None, step: int, last: int) -> bool:
    """Whether the held-out loss is due after a step; after the last of a run it always is."""
    return config is not None and (step % config.every == 0 or step == last)


class Validate(Hook):
    """Logs the held-out loss as `validation/...`.

    A run that is told to leave gives the evaluation up; its time counts in no row of metrics.
    """

    name = "validating"
    order = 30

    def __init__(self, config: EvaluationConfig, evaluator: Evaluator):
        self.config, self.evaluator = config, evaluator

    def after_step(self, run: Run, step: int, result: StepResult, is_last: bool) -> None:
        if not validates(self.config, step, run.steps):
            return

        def goes_on() -> bool:
            run.progress()
            return not run.stop.was_made()

        if measured := self.evaluator.measure(goes_on):
            named = {f"validation/{name}": value for name, value in measured.items()}
            run.log.write({"step": step, **named})
        run.log.start_clocks(step)
