"""A hook that writes a Hugging Face folder of the trained weights after the last step."""

from pathlib import Path
from typing import Any

from emu3_megatron.checkpoints.folders import tracked
from emu3_megatron.config.training import DecoderRunConfig
from emu3_megatron.interchange.exporting import export_folder
from emu3_megatron.interchange.importing import require_absent
from emu3_megatron.parallel.votes import on_first_rank
from emu3_megatron.runs.interfaces import Hook, Run, StepResult


class ExportFolder(Hook):
    """Writes `run.export`: what `emu3 convert export` writes of the last checkpoint.

    Raises:
        InputError: at once, and not after the last step, if the folder exists.
    """

    name = "exporting"
    order = 95  # behind the save, whose checkpoint it reads

    def __init__(self, config: DecoderRunConfig, engine: Any):
        self.config, self.engine = config, engine
        assert config.export is not None
        self.folder: Path = config.export

    def before_training(self, run: Run, step: int) -> None:
        if step < self.config.steps:
            on_first_rank(lambda: require_absent(self.folder, "run.export"))

    def after_step(self, run: Run, step: int, result: StepResult, is_last: bool) -> None:
        if step < self.config.steps or result.verdict.leaves:
            return
        checkpoint = tracked(run.folder / "checkpoints")
        assert checkpoint is not None
        on_first_rank(lambda: export_folder(checkpoint, self.folder, is_sound=True))
        if hasattr(self.engine, "write_adapters"):
            self.engine.write_adapters(self.folder / "adapter")
