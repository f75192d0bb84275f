"""Tiny photos and clips, and tokenizers trained on them step by step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from emu3_megatron import parallel
from emu3_megatron.checkpoints.folders import find_checkpoint
from emu3_megatron.checkpoints.saving import request_checkpoint
from emu3_megatron.checkpoints.state import load_state
from emu3_megatron.config.tokenizer_training import TokenizerRecipe
from emu3_megatron.media.writers import write_clip
from emu3_megatron.parallel import Mesh
from emu3_megatron.runs.interfaces import StepResult, Verdict
from emu3_megatron.tokenizer_training.building import build_trainer
from emu3_megatron.tokenizer_training.data import TokenizerFiles
from emu3_megatron.tokenizer_training.trainer import TokenizerTrainer

COLOURS = [(220, 30, 30), (30, 200, 40), (40, 40, 220), (230, 220, 60), (240, 240, 240), (8, 8, 8)]


def make_photos(
    folder: Path, sizes: Sequence[tuple[int, int]] = ((32, 32),), mirrored: bool = False
) -> Path:
    """Six pictures of two colours each, with these widths and heights in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, colour in enumerate(COLOURS):
        width, height = sizes[i % len(sizes)]
        values = np.full((height, width, 3), colour, np.uint8)
        values[:, width // 2 :] = COLOURS[i - 1]
        values = values[:, ::-1] if mirrored else values
        Image.fromarray(np.ascontiguousarray(values)).save(folder / f"{i}.png")
    return folder


def make_clips(folder: Path, count: int = 2, side: int = 32) -> Path:
    """Clips of 8 frames in which a bright square moves."""
    for i in range(count):
        pixels = torch.full((8, 3, side, side), -0.5 + 0.3 * i)
        for t in range(8):
            pixels[t, :, 8 : 8 + side // 3, 2 * t : 2 * t + side // 3] = 0.8
        write_clip(folder / f"{i}.mp4", pixels, fps=8)
    return folder


def tokenizer_recipe(folder: Path, photos: Path, **changes: Any) -> TokenizerRecipe:
    """A recipe of a few steps; sections are merged into it by their names."""
    values: dict[str, Any] = {
        "run": {"dir": folder, "steps": 8, "log_every": 2},
        "network": {"preset": "tiny", "codebook_size": 32, "channel_multiplier": (1, 1, 1, 1)},
        "data": {"images": photos, "area": 32 * 32, "crop": None, "workers": 0},
        "batch": {"size": 2},
        "codebook": {"plain_steps": 3, "restart_after": 2},
        "batch_norm_steps": 4,
        "optimizer": {"lr": 2e-3},
    }
    for name, value in changes.items():
        merged = isinstance(value, dict) and isinstance(values.get(name), dict)
        values[name] = values[name] | value if merged else value
    return TokenizerRecipe.model_validate(values)


@dataclass
class TokenizerSteps:
    """What the loop would put together, for a test to step through."""

    recipe: TokenizerRecipe
    mesh: Mesh
    trainer: TokenizerTrainer
    data: TokenizerFiles
    results: list[StepResult] = field(default_factory=list)

    def take(self, first: int, last: int) -> list[StepResult]:
        """The steps after `first` up to `last`; every one is taken."""
        for number, samples in enumerate(self.data.batches(self, first, last), first + 1):  # type: ignore[arg-type]
            self.results.append(self.trainer.step(number, samples, lambda values: Verdict()))
        return self.results

    def owners(self) -> dict[str, Any]:
        return {"trainer": self.trainer, "data": self.data}

    def save(self, folder: Path, step: int) -> Path:
        about = {"recipe": self.recipe.model_dump(mode="json")}
        return request_checkpoint(folder, step, self.owners(), about).commit()

    def load(self, folder: Path) -> int:
        return load_state(find_checkpoint(folder), self.owners())["step"]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a checkpoint holds of the trainer, by dotted name."""
        return dict(_flat(self.trainer.state_dict()))


def _flat(state: dict[str, Any], prefix: str = "") -> Any:
    for name, value in state.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value.detach().clone()


def start_tokenizer(
    recipe: TokenizerRecipe,
    mesh: Mesh | None = None,
    report: Callable[[int, list[str]], None] = lambda step, faults: None,
    double: bool = False,
) -> TokenizerSteps:
    """A trainer before its first step.

    Args:
        double: all that is trained is fp64.
    """
    mesh = mesh or parallel.start()
    least_side = recipe.loss.perceptual.least_side
    data = TokenizerFiles(recipe.data, recipe.batch, recipe.run.seed, least_side)
    schedule = recipe.optimizer.schedule.completed(recipe.run.steps)
    optimizer = recipe.optimizer.model_copy(update={"schedule": schedule})
    recipe = recipe.model_copy(update={"optimizer": optimizer})
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if double else before)
    try:
        trainer = build_trainer(recipe, data.samples, mesh, report)
    finally:
        torch.set_default_dtype(before)
    return TokenizerSteps(recipe, mesh, trainer, data)
