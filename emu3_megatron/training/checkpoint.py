"""Megatron distributed checkpoints, committed by rename, that load on any layout.

`DIR/step-00000100/` holds Megatron's files and `emu3.json` (step, recipe, vocabulary); `DIR/latest`
names the newest. Random states need no place in them: they follow from (seed, step).
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state

from emu3_megatron.config import ModelConfig, Recipe
from emu3_megatron.config.schema import ParallelConfig
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing, sync
from emu3_megatron.model import Decoder, build_decoder
from emu3_megatron.parallel import Mesh
from emu3_megatron.training.optimizer import Trainable, allocate_states, load_states

# The one format of the distributed optimizer that any layout reads.
_SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}
_ARCHITECTURE = ("layers", "hidden", "heads", "kv_heads", "ffn", "rope_base", "norm_epsilon")


def save_checkpoint(folder: Path, step: int, trainable: Trainable, recipe: Recipe) -> Path:
    """Write a checkpoint beside, then commit it: complete under its name, or not there at all."""
    target = folder / f"step-{step:08d}"
    beside = folder / f".{target.name}.tmp"
    _on_first_rank(lambda: _make_empty(beside))
    state = _sharded_state(trainable, is_loading=False)
    state["schedule"] = trainable.schedule.state_dict()
    dist_checkpointing.save(state, str(beside))
    _on_first_rank(lambda: _commit(beside, target, step, recipe))
    return target


def load_checkpoint(path: Path, trainable: Trainable) -> int:
    """Fill weights, optimizer and schedule from a checkpoint of this model; return its step."""
    about = read_checkpoint(path)
    allocate_states(trainable.optimizer)
    loaded = dist_checkpointing.load(_sharded_state(trainable, is_loading=True), str(path))
    trainable.decoder.load_state_dict(loaded["model"])
    load_states(trainable.optimizer, loaded["optimizer"])
    trainable.schedule.load_state_dict(loaded["schedule"])
    return about["step"]


def open_decoder(path: Path, mesh: Mesh) -> tuple[Decoder, Recipe]:
    """The decoder of a checkpoint, on this mesh's tensor parallel ranks, with its recipe."""
    path = find_checkpoint(path)
    recipe = Recipe.model_validate(read_checkpoint(path)["recipe"])
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
        if (folder / "emu3.json").is_file():
            return folder
        if (folder / "latest").is_file():
            return folder / (folder / "latest").read_text().strip()
    raise InputError(f"{path}: no checkpoint here; give a run's folder or a step-… folder")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `emu3.json` says: step, recipe, vocabulary."""
    try:
        return json.loads((path / "emu3.json").read_text())
    except (OSError, json.JSONDecodeError):
        raise InputError(f"{path}: not a complete checkpoint, emu3.json is missing") from None


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
    """Remove all but the newest `keep` checkpoints."""
    _on_first_rank(lambda: _remove(sorted(folder.glob("step-*"))[:-keep]))


def _sharded_state(trainable: Trainable, is_loading: bool) -> dict[str, Any]:
    metadata = {**_SHARDING, "dp_cp_group": _token_group()}
    model = trainable.decoder.sharded_state_dict(metadata=metadata)
    optimizer = trainable.optimizer.sharded_state_dict(
        model, is_loading=is_loading, metadata=metadata
    )
    return {"model": model, "optimizer": optimizer}


def _token_group() -> dist.ProcessGroup:
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder)


def _make_empty(folder: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _commit(beside: Path, target: Path, step: int, recipe: Recipe) -> None:
    about = {
        "step": step,
        "vocabulary": recipe.model.vocabulary().fingerprint(),
        "recipe": recipe.model_dump(mode="json"),
    }
    (beside / "emu3.json").write_text(json.dumps(about, indent=2) + "\n")
    for path in beside.iterdir():
        sync(path)
    if target.exists():
        shutil.rmtree(target)
    os.replace(beside, target)
    with replacing(target.parent / "latest") as latest:
        latest.write_text(target.name + "\n")


def _on_first_rank(action: Callable[[], Any]) -> None:
    if dist.get_rank() == 0:
        action()
    dist.barrier()
