"""Hooks of a tokenizer's run: pictures while it trains, and the tokenizer at its end."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from emu3_megatron.media.images import to_image
from emu3_megatron.media.writers import write_clip, write_png
from emu3_megatron.parallel.votes import on_first_rank
from emu3_megatron.runs.hooks.logging import validates
from emu3_megatron.runs.interfaces import Hook, Run, StepResult
from emu3_megatron.tokenizer_training.held_out import HeldOutFiles
from emu3_megatron.tokenizer_training.trainer import TokenizerTrainer
from emu3_megatron.vision.files import At
from emu3_megatron.vision.measures.reconstruction import codec_of, means, measure

_CLIP_FPS = 12.0


class ShowReconstructions(Hook):
    """Draws held-out files beside what their codes give: `samples/step-…`, PNG and MP4.

    A run that is told to leave draws none: its launcher gave it little time.
    """

    name = "drawing"
    order = 100  # behind the save: drawing may take long and has nothing to save

    def __init__(self, held_out: HeldOutFiles):
        self.held_out = held_out

    def after_step(self, run: Run, step: int, result: StepResult, is_last: bool) -> None:
        if result.verdict.leaves or not validates(self.held_out.config, step, run.steps):
            return
        folder = run.folder / "samples" / f"step-{step:08d}"
        images = run.try_to_write("samples", step, lambda: self.draw(folder))
        run.log.show(step, images or {})
        run.log.start_clocks(step)

    def draw(self, folder: Path) -> dict[str, Path]:
        """Write the pictures and clips into a folder; returns the pictures by name."""
        drawn: dict[str, Path] = {}
        for path, given_tchw, shown_tchw in self.held_out.shown():
            name = f"{len(drawn)}-{path.stem}"  # two folders may have files of one name
            both_tchw = torch.cat((given_tchw, shown_tchw), dim=-1)
            if len(both_tchw) > 1:
                write_clip(folder / f"{name}.mp4", _even(both_tchw) / 127.5 - 1, _CLIP_FPS)
            drawn[name] = folder / f"{name}.png"
            write_png(drawn[name], _grid(both_tchw))
        return drawn


def _even(pixels_tchw: Tensor) -> Tensor:
    height, width = (side - side % 2 for side in pixels_tchw.shape[-2:])
    return pixels_tchw[..., :height, :width]


def _grid(frames_tchw: Tensor) -> Image.Image:
    """Frames below one another."""
    return to_image(torch.cat(list(frames_tchw), dim=-2) / 127.5 - 1)


class WriteTokenizer(Hook):
    """Writes `tokenizer/` after the last step, and says so where its codes were never used.

    A run that ended between its last checkpoint and this writes it when it is started again.

    Args:
        paths: photos to measure such codes with.
        area: pixels of a photo.
    """

    name = "writing the tokenizer"
    order = 95  # behind the save, which has the same weights, and before drawing, which takes long

    def __init__(self, trainer: TokenizerTrainer, paths: Sequence[Path], area: int):
        self.trainer, self.paths, self.area = trainer, paths, area

    def before_training(self, run: Run, step: int) -> None:
        if step >= run.steps and not (run.folder / "tokenizer" / "config.json").is_file():
            self._write(run, step)

    def after_step(self, run: Run, step: int, result: StepResult, is_last: bool) -> None:
        if step >= run.steps:
            self._write(run, step)

    def _write(self, run: Run, step: int) -> None:
        folder = run.folder / "tokenizer"
        on_first_rank(lambda: self.trainer.evaluated.save(folder))
        if not self.trainer.used_codes(step):
            on_first_rank(lambda: self._warn(run, step, folder))

    def _warn(self, run: Run, step: int, folder: Path) -> None:
        measured = measure(codec_of(self.trainer.evaluated), self.paths, At(self.area))
        gives = means(measured.kept)["PSNR"] if measured.kept else math.nan
        codes = "new codes" if self.trainer.old_codes else "codes"
        line = (
            f"{folder}: no step of {step} used its {codes} (codebook.plain_steps="
            f"{self.trainer.recipe.codebook.plain_steps}); they give {gives:.1f} dB on "
            f"{len(measured.kept)} of its photos; train anew with more run.steps, or fewer "
            "plain_steps"
        )
        run.events.add("codes never used", step, details=line)
        print(line)
