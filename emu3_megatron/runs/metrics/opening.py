"""Opens everything that the first rank writes metrics to."""

from collections.abc import Callable
from typing import Any

from emu3_megatron.config.runs import RunConfig
from emu3_megatron.runs.events import Events
from emu3_megatron.runs.metrics.trackers import TensorBoard, WandB
from emu3_megatron.runs.metrics.writers import BestEffort, JsonLines, ProgressLine, Writer


def open_writers(
    config: RunConfig, about: dict[str, Any], resumed_step: int, events: Events
) -> list[Writer]:
    """The writers that a recipe asks for; all but `metrics.jsonl` may fail and the run goes on.

    Args:
        about: of the run; wandb keeps its recipe.
        resumed_step: rows of later steps, left by an earlier start, are dropped.
        events: told of a writer that fails.
    """
    config.dir.mkdir(parents=True, exist_ok=True)
    lines = JsonLines(config.dir / "metrics.jsonl", resumed_step)
    openings: dict[str, Callable[[], Writer]] = {}
    if config.tensorboard:
        openings["TensorBoard"] = lambda: TensorBoard(config.dir / "tensorboard", resumed_step)
    if config.wandb:
        openings["wandb"] = lambda: WandB(config, about.get("recipe"), lines.last_row)
    openings["the progress bar"] = lambda: ProgressLine(resumed_step, config.steps)
    others = [BestEffort(name, open, events, resumed_step) for name, open in openings.items()]
    return [lines, *others]
