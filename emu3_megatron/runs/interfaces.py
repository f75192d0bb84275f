"""The interfaces of a run: Trainer, Data, Evaluator, Hook, and the Run that hooks are given."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from emu3_megatron.checkpoints.state import Saved, SplitState, State, Stateful
from emu3_megatron.errors import InputError
from emu3_megatron.files import write_json
from emu3_megatron.parallel import Mesh
from emu3_megatron.parallel.votes import on_first_rank
from emu3_megatron.runs.communication import Communication
from emu3_megatron.runs.events import Events
from emu3_megatron.runs.metrics.log import Log, Work
from emu3_megatron.runs.signals import StopRequest
from emu3_megatron.runs.watchdog import Watchdog

B = TypeVar("B")
T = TypeVar("T")
B_co = TypeVar("B_co", covariant=True)
B_contra = TypeVar("B_contra", contravariant=True)


@dataclass(frozen=True)
class Verdict:
    """What all ranks agreed on after a step's losses and gradients are known.

    Attributes:
        trouble: why the step must not move the weights; None if it may.
        leaves: whether some rank was told to leave: this step is the last.
        saves: whether a checkpoint is due after it by the clock.
    """

    trouble: str | None = None
    leaves: bool = False
    saves: bool = False


# Losses and gradient norms of a step to a verdict. A step's one collective vote: every rank asks.
Judge = Callable[[Mapping[str, float]], Verdict]


@dataclass(frozen=True)
class StepResult:
    """One step.

    Attributes:
        metrics: of the step over all ranks, by name; `loss` and `grad_norm` among them.
        details: of a step that was not taken, what this rank computed; JSON.
    """

    metrics: dict[str, float]
    verdict: Verdict = Verdict()
    work: Work = field(default_factory=Work)
    details: list[dict[str, Any]] = field(default_factory=list)


class Trainer(Stateful, Protocol[B_contra]):
    """All that the loop knows of what is trained."""

    def step(self, number: int, batches: Sequence[B_contra], judge: Judge) -> StepResult:
        """Take step `number`, counted from 1, unless the verdict is that it must not be taken."""
        ...


class Data(Stateful, Protocol[B_co]):
    """Where batches come from."""

    def batches(self, run: "Run", first: int, last: int) -> Iterator[Sequence[B_co]]:
        """This rank's micro-batches of the steps after `first` up to `last`, step by step.

        The next ones are asked for when the step before has ended.
        """
        ...


class Evaluator(Protocol):
    """Measures on data that no step learns from."""

    def measure(self, goes_on: Callable[[], bool]) -> dict[str, float] | None:
        """Metrics by name.

        Args:
            goes_on: asked between batches, on all ranks alike.

        Returns:
            None if it was not to go on to the end.
        """
        ...


class Hook:
    """Called around every step, on every rank alike. Steps count from 1.

    Attributes:
        name: under which checkpoints hold its state; also what heartbeats say the rank is doing.
        order: hooks run by rising order. 0 logs, 10 to 30 judge, 50 is for whatever else; 90 saves,
            behind every hook with state and behind those that end a run, so that no checkpoint
            holds a step that should not have been taken; 100 may take long and saves nothing.
    """

    name = "hook"
    order = 50

    def before_training(self, run: "Run", step: int) -> None:
        """`step` steps have been taken already."""

    def after_step(self, run: "Run", step: int, result: StepResult, is_last: bool) -> None: ...

    def after_training(self, run: "Run") -> None: ...

    def state_dict(self, saved: Saved | None = None) -> State:
        """What a resumed run must know; nothing by default."""
        return {}

    def load_state_dict(self, state: State) -> None: ...


@dataclass
class Run:
    """Everything that belongs to one run.

    Attributes:
        folder: the run's.
        steps: in all, over all starts.
        about: what its checkpoints say besides state; JSON.
        still_ours: whether the folder still belongs to this job; the first rank asks.
        log: rows of metrics.
    """

    folder: Path
    steps: int
    mesh: Mesh
    events: Events
    watchdog: Watchdog
    stop: StopRequest
    communication: Communication
    still_ours: Callable[[], bool]
    log: Log
    about: dict[str, Any] = field(default_factory=dict)
    trainer: Trainer[Any] = field(init=False)
    data: Data[Any] = field(init=False)
    hooks: list[Hook] = field(default_factory=list)

    def owners(self) -> dict[str, Stateful]:
        """Whose state a checkpoint holds, by name.

        Raises:
            InputError: two have one name: a checkpoint would hold the state of one alone.
        """
        owners: dict[str, Stateful] = {"trainer": self.trainer, "data": self.data}
        for hook in self.hooks:
            if hook.name in owners:
                raise InputError(
                    f"hooks: {type(hook).__name__} has the name {hook.name!r}, which is taken; "
                    "checkpoints hold state by name: give its class another"
                )
            owners[hook.name] = hook
        return owners

    def describe(self) -> None:
        """Write `run.json`, for whoever asks about the run: what it is, and the data's state.

        Tensors are left out.
        """
        about = {**self.about, "data": SplitState.of({"data": self.data}).values["data"]}
        on_first_rank(lambda: write_json(self.folder / "run.json", about))

    def try_to_write(self, what: str, step: int, action: Callable[[], T]) -> T | None:
        """What `action` returns on the first rank, on every rank: for files a run can do without.

        A disk that doesn't take them is an event, and None.
        """

        def attempt() -> T | None:
            try:
                return action()
            except OSError as error:
                why = f"{what}: {error.strerror or error}"
                words = f"{why}; not written, and the run goes on"
                self.events.add("not written", step, words, why=why)
                return None

        return on_first_rank(attempt)

    def progress(self) -> None:
        """Tell the watchdog that a phase that may take long goes on."""
        self.watchdog.goes_on()
