"""The state that a checkpoint holds, by owner.

An owner (the trainer, the data, each hook) gives a dict. What of it holds tensors goes through
Megatron's distributed checkpointing: a ShardedTensor as it says, a plain tensor as one that is the
same on all ranks. The rest is JSON and goes into the manifest.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.mapping import ShardedBase
from torch.distributed.checkpoint import CheckpointException, FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from emu3_megatron import upstream
from emu3_megatron.checkpoints.folders import read_checkpoint
from emu3_megatron.errors import InputError

upstream.mark_loaded_tensors()

State = dict[str, Any]


@dataclass(frozen=True)
class Saved:
    """A checkpoint that an owner is about to be loaded from.

    Attributes:
        values: what the manifest holds of the owner, JSON.
    """

    path: Path
    values: State


class Stateful(Protocol):
    """An owner of state. Every rank calls alike."""

    def state_dict(self, saved: Saved | None = None) -> State:
        """What a checkpoint is to hold; with `saved`, the template that loading will fill."""
        ...

    def load_state_dict(self, state: State) -> None: ...


@dataclass(frozen=True)
class SplitState:
    """State of all owners, by where it goes.

    Attributes:
        tensors: through Megatron's distributed checkpointing, by owner.
        values: into the manifest, by owner; JSON.
    """

    tensors: dict[str, State]
    values: dict[str, State]

    @classmethod
    def of(cls, owners: Mapping[str, Stateful]) -> "SplitState":
        """Ask all owners for what to save.

        Raises:
            InputError: some state is neither tensors nor JSON.
        """
        states = {name: owner.state_dict() for name, owner in owners.items()}
        for name, state in states.items():
            if not isinstance(state, dict):
                raise InputError(f"state of {name}: {state!r}; let its state_dict() return a dict")
        has = {name: _with_tensors(state) for name, state in states.items()}
        rest = {
            name: {key: value for key, value in state.items() if key not in has[name]}
            for name, state in states.items()
        }
        for name, values in rest.items():
            _refuse_other_than_json(name, values)
        tensors = {name: _as_sharded(name, part) for name, part in has.items() if part}
        return cls(tensors, rest)


def _refuse_other_than_json(owner: str, values: State) -> None:
    try:
        json.dumps(values)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"state of {owner}: {error}; let its state_dict() hold tensors and JSON alone"
        ) from None


def load_state(path: Path, owners: Mapping[str, Stateful]) -> dict[str, Any]:
    """Load owners from a checkpoint; one that it knows nothing of stays as it is.

    Returns:
        What the manifest says.

    Raises:
        InputError: a tensor is not in the checkpoint, or has another shape there.
    """
    about = read_checkpoint(path)
    known = {name: owner for name, owner in owners.items() if name in about["state"]}
    templates, values = {}, {}
    for name, owner in known.items():
        values[name] = about["state"][name]
        template = _with_tensors(owner.state_dict(Saved(path, values[name])))
        if template:
            templates[name] = _as_sharded(name, template)
    loaded = _load_tensors(path, templates) if templates else {}
    for name, owner in known.items():
        tensors = {key: loaded[name][key] for key in templates.get(name, {})}
        owner.load_state_dict({**values[name], **tensors})
    return about


def stored_tensors(path: Path) -> dict[str, TensorStorageMetadata]:
    """What is known of each tensor that a checkpoint holds, by its key."""
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    return {k: about for k, about in stored.items() if isinstance(about, TensorStorageMetadata)}


def _load_tensors(path: Path, templates: dict[str, State]) -> dict[str, Any]:
    try:
        # A template may ask for some layers of a stack only, which Megatron's check would refuse.
        return dist_checkpointing.load(templates, str(path), validate_access_integrity=False)
    except (CheckpointingException, CheckpointException) as error:
        reason = str(error).strip().splitlines()[-1].partition(": [")[0].strip()
        raise InputError(
            f"{path}: does not fit the run ({reason}); resume with the recipe that wrote it, or "
            f"choose another run.dir, with run.init_from={path} to keep the weights"
        ) from error


def _with_tensors(state: State) -> State:
    """The entries that hold tensors, at any depth."""
    kinds = (torch.Tensor, ShardedBase)
    return {key: value for key, value in state.items() if _holds(value, kinds)}


def _holds(value: Any, kinds: Any) -> bool:
    """Whether a value is, or has in it, something of these types."""
    if isinstance(value, dict):
        return any(_holds(item, kinds) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_holds(item, kinds) for item in value)
    return isinstance(value, kinds)


def _as_sharded(owner: str, state: State) -> State:
    """Plain tensors become ShardedTensors of which each rank holds a copy.

    An entry that Megatron has described, with ShardedTensors in it, is passed on as it is.
    """
    return {
        key: value if _holds(value, ShardedBase) else _replicated(f"{owner}.{key}", value)
        for key, value in state.items()
    }


def _replicated(key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _replicated(f"{key}.{name}", item) for name, item in value.items()}
    if isinstance(value, torch.Tensor):
        return ShardedTensor.from_rank_offsets(key, value, replica_id=dist.get_rank())
    return value
