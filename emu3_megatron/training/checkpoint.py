"""Megatron distributed checkpoints that load on any layout and vouch for every byte.

`DIR/step-00000100/` holds Megatron's files and `manifest.json`: sizes and hashes, step, recipe,
vocabulary, the phases of the mixture and the guard's memory. `DIR/latest` names the newest. Random
states need no place in them: they follow from (seed, step).
"""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state

from emu3_megatron import manifest
from emu3_megatron.checkpoints.saving import TRACKER, PendingSave, move_tracker, request_save
from emu3_megatron.config import ModelConfig, Recipe
from emu3_megatron.config.training import DecoderRecipe, ParallelConfig
from emu3_megatron.errors import InputError
from emu3_megatron.model import Decoder, build_decoder
from emu3_megatron.parallel import Mesh
from emu3_megatron.parallel.votes import first_of_ranks, on_first_rank
from emu3_megatron.training.optimizer import (
    Trainable,
    allocate_states,
    load_states,
    set_schedule,
)

# The one format of the distributed optimizer that any layout reads.
_SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}
_ARCHITECTURE = ("layers", "hidden", "heads", "kv_heads", "ffn", "rope_base", "norm_epsilon")


def request_checkpoint(
    folder: Path, step: int, trainable: Trainable, recipe: Recipe, **memory: Any
) -> PendingSave:
    """Start writing a checkpoint beside its place; `commit` makes it one.

    Args:
        memory: what else a resumed run must know; JSON.

    Raises:
        SaveError: on all ranks alike.
    """
    about = {
        "step": step,
        "vocabulary": recipe.model.vocabulary().fingerprint(),
        "recipe": recipe.model_dump(mode="json"),
        **memory,
    }
    target = folder / f"step-{step:08d}"
    return request_save(target, step, _sharded_state(trainable, is_loading=False), about)


def save_checkpoint(
    folder: Path, step: int, trainable: Trainable, recipe: Recipe, **memory: Any
) -> Path:
    """Write a checkpoint: complete under its name, or not there at all."""
    return request_checkpoint(folder, step, trainable, recipe, **memory).commit()


def load_checkpoint(path: Path, trainable: Trainable) -> int:
    """Fill weights and optimizer from a checkpoint of this model; return its step.

    The schedule is set to the step; what its rates are is the recipe's to say.
    """
    step = read_checkpoint(path)["step"]
    allocate_states(trainable.optimizer)
    loaded = dist_checkpointing.load(_sharded_state(trainable, is_loading=True), str(path))
    trainable.decoder.load_state_dict(loaded["model"])
    load_states(trainable.optimizer, loaded["optimizer"])
    set_schedule(trainable.schedule, step)
    return step


def open_decoder(path: Path, mesh: Mesh) -> tuple[Decoder, DecoderRecipe]:
    """The decoder of a checkpoint, on this mesh's tensor parallel ranks, with its recipe."""
    path = find_checkpoint(path)
    verify(path)
    recipe = DecoderRecipe.model_validate(read_checkpoint(path)["recipe"])
    parallel = ParallelConfig(tensor=mesh.tensor_size)
    bf16 = recipe.precision == "bf16"
    decoder = build_decoder(recipe.model, parallel, seed=None, bf16=bf16)
    load_decoder(path, decoder)
    return decoder.eval(), recipe


def load_decoder(path: Path, decoder: Decoder) -> None:
    """Fill a decoder's weights alone, for generation."""
    metadata = {"dp_cp_group": _token_group()}
    state = {"model": decoder.sharded_state_dict(metadata=metadata)}
    decoder.load_state_dict(dist_checkpointing.load(state, str(path))["model"])


def find_checkpoint(path: Path) -> Path:
    """A checkpoint given by its folder, by the folder of checkpoints, or by the run's folder.

    Raises:
        InputError: there is none.
    """
    for folder in (path, path / "checkpoints"):
        if (folder / manifest.NAME).is_file():
            return folder
        if (folder / TRACKER).is_file():
            return folder / (folder / TRACKER).read_text().strip()
    raise InputError(f"{path}: no checkpoint here; give a run's folder or a step-… folder")


def tracked(folder: Path) -> Path | None:
    """The checkpoint that the tracker of a folder names, or None without a tracker.

    As the first rank sees it: a file system may show other hosts an older tracker for a while.
    """
    return on_first_rank(lambda: find_checkpoint(folder) if (folder / TRACKER).is_file() else None)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What the manifest says: step, recipe, vocabulary, files and what else was given."""
    return manifest.read(path)


def verify(path: Path) -> None:
    """Read every byte of a checkpoint, each rank its share of the files.

    Raises:
        InputError: on all ranks alike; it names the file and the step.
    """
    if fault := _fault(path):
        raise InputError(
            f"{fault}; restore it, or take another; run.resume=auto takes a run's newest sound one"
        )


def newest_sound(folder: Path) -> Path | None:
    """The newest checkpoint whose bytes are all there; newer ones are set aside by name.

    The tracker names it from now on. None if there is none.
    """
    for path in on_first_rank(lambda: sorted(folder.glob("step-*"), reverse=True)):
        fault = _fault(path)
        if fault is None:
            on_first_rank(partial(move_tracker, path))
            return path
        on_first_rank(partial(_set_aside, path, fault))
    return None


def check_model(path: Path, about: dict[str, Any], model: ModelConfig) -> None:
    """Raise InputError unless the checkpoint holds this very model."""
    saved = ModelConfig.model_validate(about["recipe"]["model"])
    for field in _ARCHITECTURE:
        if getattr(saved, field) != getattr(model, field):
            raise InputError(
                f"{path}: a checkpoint of another model: model.{field} is {getattr(saved, field)} "
                f"there and {getattr(model, field)} in the recipe; choose another run.dir"
            )
    if about["vocabulary"] != model.vocabulary().fingerprint():
        raise InputError(f"{path}: a checkpoint of another vocabulary; choose another run.dir")


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` durable checkpoints; never the one the tracker names."""
    on_first_rank(lambda: _prune(folder, keep))


def _prune(folder: Path, keep: int) -> None:
    latest = (folder / TRACKER).read_text().strip()
    # What is newer than the tracker was written before a fall back, and will be written again.
    durable = sorted(path for path in folder.glob("step-*") if path.name <= latest)
    for path in durable[:-keep]:
        # Not under its name while it goes; what stays of it, the next save removes.
        gone = path.rename(path.with_name(f".{path.name}.gone.tmp"))
        shutil.rmtree(gone, ignore_errors=True)


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, in words, the same on all ranks; None if nothing is."""
    try:
        about = on_first_rank(lambda: manifest.read(path))
    except InputError as error:
        return str(error)
    mine = sorted(about["files"])[dist.get_rank() :: dist.get_world_size()]
    found = first_of_ranks(manifest.first_fault(path, mine, about["files"]))
    return f"step {about['step']}: {found[1]}" if found else None


def _set_aside(path: Path, fault: str) -> None:
    aside = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    print(f"{fault}; set aside as {aside.name}")


def _sharded_state(trainable: Trainable, is_loading: bool) -> dict[str, Any]:
    metadata = {**_SHARDING, "dp_cp_group": _token_group()}
    model = trainable.decoder.sharded_state_dict(metadata=metadata)
    optimizer = trainable.optimizer.sharded_state_dict(
        model, is_loading=is_loading, metadata=metadata
    )
    return {"model": model, "optimizer": optimizer}


def _token_group() -> dist.ProcessGroup:
    return parallel_state.get_data_parallel_group(with_context_parallel=True)
