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
        images = on_first_rank(lambda: self._draw(folder))
        run.log.show(step, images)
        run.log.start_clocks(step)

    def _draw(self, folder: Path) -> dict[str, Path]:
        drawn: dict[str, Path] = {}
        for path, given_tchw, shown_tchw in self.held_out.shown():
            name = f"{len(drawn)}-{path.stem}"
            both_tchw = torch.cat((given_tchw, shown_tchw), dim=-1)
            if len(both_tchw) > 1:
                write_clip(folder / f"{name}.mp4", _even(both_tchw) / 127.5 - 1, _CLIP_FPS)
            drawn[path.stem] = folder / f"{name}.png"
            write_png(drawn[path.stem], _grid(both_tchw))
        return drawn


def _even(pixels_tchw: Tensor) -> Tensor:
    height, width = (side - side % 2 for side in pixels_tchw.shape[-2:])
    return pixels_tchw[..., :height, :width]


def _grid(frames_tchw: Tensor) -> Image.Image:
    """Frames below one another."""
    return to_image(torch.cat(list(frames_tchw), dim=-2) / 127.5 - 1)


class WriteTokenizer(Hook):
    """Writes `tokenizer/` after the last step, and says so where its codes were never used.

    Args:
        paths: photos to measure such codes with.
        area: pixels of a photo.
    """

    name = "writing the tokenizer"
    order = 110  # last: everything else has seen the weights that it writes

    def __init__(self, trainer: TokenizerTrainer, paths: Sequence[Path], area: int):
        self.trainer, self.paths, self.area = trainer, paths, area

    def after_step(self, run: Run, step: int, result: StepResult, is_last: bool) -> None:
        if step < run.steps:
            return
        folder = run.folder / "tokenizer"
        on_first_rank(lambda: self.trainer.evaluated.save(folder))
        if not self.trainer.used_codes(step):
            on_first_rank(lambda: self._warn(run, step, folder))

    def _warn(self, run: Run, step: int, folder: Path) -> None:
        measured = measure(codec_of(self.trainer.evaluated), self.paths, At(self.area))
        gives = means(measured.kept)["PSNR"] if measured.kept else math.nan
        line = (
            f"{folder}: no step used its codes, since run.steps={run.steps} is not above "
            f"codebook.plain_steps={self.trainer.recipe.codebook.plain_steps}; they were placed "
            f"after the last step and give {gives:.1f} dB on {len(measured.kept)} of its photos; "
            "raise run.steps and start the run again"
        )
        run.events.add("codes never used", step, details=line)
        print(line)
