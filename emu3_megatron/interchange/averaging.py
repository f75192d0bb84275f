"""`emu3 convert average`: the moving average that a run keeps, as a checkpoint of its own."""

from dataclasses import replace
from pathlib import Path

import torch

from emu3_megatron import manifest
from emu3_megatron.checkpoints.folders import FORMAT, find_checkpoint, read_checkpoint, verify
from emu3_megatron.checkpoints.state import stored_tensors
from emu3_megatron.config import ModelConfig
from emu3_megatron.config.training import DecoderRecipe
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing
from emu3_megatron.interchange.importing import require_absent
from emu3_megatron.interchange.sharded import Frame, checkpoint_dtype
from emu3_megatron.model.opening import AVERAGE

# What of a checkpoint's manifest holds of the average of its weights too.
_KEPT = ("vocabulary", "null_prompt", "grid", "max_positions", "image_area")


class _Averages(Frame):
    """The decoder's parameters where a checkpoint holds their averages."""

    def __init__(self, model: ModelConfig):
        super().__init__(model, torch.float32)
        self.places = {n: replace(p, key=AVERAGE + p.key) for n, p in self.places.items()}


def write_average(source: Path, target: Path) -> str:
    """Write `target/checkpoints`, which everything that opens a checkpoint opens.

    Megatron's groups over one process must be there (`parallel.start`).

    Args:
        source: a run or a checkpoint.

    Returns:
        A line on what was written.

    Raises:
        InputError: no checkpoint there, a damaged one, one without an average, or `target` exists.
    """
    require_absent(target)
    path = find_checkpoint(source)
    verify(path)
    about = read_checkpoint(path)
    recipe = DecoderRecipe.of(path, about)
    if not any(key.startswith(AVERAGE) for key in stored_tensors(path)):
        raise InputError(
            f"{path}: holds no moving average of its weights; a run keeps one with "
            "optimizer.average.decay"
        )
    dtype = checkpoint_dtype(path)
    averages, frame = _Averages(recipe.model), Frame(recipe.model, dtype)
    described = {name: about[name] for name in _KEPT if name in about} | {
        "format": FORMAT,
        "step": about["step"],
        "recipe": recipe.model_dump(mode="json"),
        "averaged_from": str(path),
        "state": {},
    }
    with replacing(target) as beside:
        unnamed = beside / "unnamed"
        unnamed.mkdir(parents=True)
        frame.write(unnamed, lambda name: averages.read_one(path, name).to(dtype))
        manifest.commit(unnamed, beside / "checkpoints", described, known={})
    return f"{target / 'checkpoints'}: the average of step {about['step']}"
