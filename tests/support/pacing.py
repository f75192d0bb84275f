"""A hook that takes its time, and says on how many data parallel ranks a step was taken."""

import time

from emu3_megatron.config.base import Component, free
from emu3_megatron.runs.interfaces import Hook, Run, StepResult


class Slowly(Hook):
    """Waits after each step."""

    name = "slowly"

    class Config(Component):
        seconds: float = free(0.1, "to wait after each step")

    def __init__(self, section: "Slowly.Config"):
        self.seconds = section.seconds

    def after_step(self, run: Run, step: int, result: StepResult, is_last: bool) -> None:
        run.log.write({"step": step, "data_size": run.mesh.data_size})
        time.sleep(self.seconds)
