"""State of the engine on Megatron-core: what a checkpoint holds, and loading it from any of them.

There are four formats: the plain and the distributed optimizer, each in fp32 and bf16. Adam's
moments have the same keys in all. The fp32 weights that Adam moves lie under a prefix of the
optimizer's; in the format of the plain optimizer in fp32 they are the model's weights themselves.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.optimizer import MegatronOptimizer

from emu3_megatron.checkpoints.state import State, stored_tensors
from emu3_megatron.model import Decoder
from emu3_megatron.model.opening import sharded_weights
from emu3_megatron.model.tensors import HEAD
from emu3_megatron.parallel.groups import token_group
from emu3_megatron.training.engines.optimizer import (
    RESHARDABLE,
    allocate_states,
    load_states,
    masters,
)

Place: TypeAlias = ShardedTensor | ShardedTensorFactory

_SHARDING = {"distrib_optim_sharding_type": RESHARDABLE}
_MASTERS = ("optimizer.state.param.", "optimizer.state.fp32_param.")


def saved_state(decoder: Decoder, optimizer: MegatronOptimizer) -> State:
    """Weights and optimizer states, as Megatron describes them."""
    return _describe(decoder, optimizer, is_loading=False)


def template(decoder: Decoder, optimizer: MegatronOptimizer, path: Path) -> State:
    """What `load` needs of a checkpoint."""
    allocate_states(optimizer)
    stored = stored_tensors(path)
    state = _describe(decoder, optimizer, is_loading=True)
    # Lists of groups, which the checkpoint may have others of, are no part of it.
    state["optimizer"] = _tensors(state["optimizer"])
    head = state["model"][HEAD]
    own = _kind(place.key for place in _places(state["optimizer"])), head.data.dtype
    if own == (_kind(stored), stored[head.key].properties.dtype):
        return state
    state["model"] = {name: _in_fp32(part, stored) for name, part in state["model"].items()}
    state["optimizer"] = _tensors(state["optimizer"], without=_MASTERS)
    return state


def load(decoder: Decoder, optimizer: MegatronOptimizer, state: State) -> None:
    """Load what `template` described."""
    weights = state["model"]
    decoder.load_state_dict(weights)
    load_states(optimizer, state["optimizer"])
    names = {parameter: name for name, parameter in decoder.named_parameters()}
    for parameter, master, part in masters(optimizer):
        weight = weights[names[parameter]]
        # In bf16 only where they come from another format; otherwise the masters are loaded.
        if weight.dtype == torch.float32:
            master.copy_(weight.flatten()[part].view(master.shape))


def _describe(decoder: Decoder, optimizer: MegatronOptimizer, is_loading: bool) -> State:
    model = sharded_weights(decoder, _SHARDING)
    metadata = {**_SHARDING, "dp_cp_group": token_group()}
    states = optimizer.sharded_state_dict(model, is_loading=is_loading, metadata=metadata)
    return {"model": model, "optimizer": states}


def _kind(keys: Iterable[str]) -> str:
    """Under which prefix the fp32 weights lie, by the keys of a checkpoint or a template."""
    keys = list(keys)
    is_used = lambda prefix: any(key.startswith(prefix) for key in keys)
    return next(filter(is_used, _MASTERS), "")


def _places(value: Any) -> Iterator[Place]:
    if isinstance(value, Place):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _places(item)


def _in_fp32(place: Any, stored: Collection[str]) -> Any:
    """The place of a weight in fp32, as exactly as the checkpoint holds it."""
    if not isinstance(place, Place):
        return place
    keys = [prefix + place.key for prefix in _MASTERS]
    key = next((key for key in keys if key in stored), place.key)
    data = torch.empty_like(place.data, dtype=torch.float32)
    if isinstance(place, ShardedTensorFactory):
        return replace(place, key=key, data=data)
    return replace(place, key=key, data=data, dtype=data.dtype)


def _tensors(value: Any, without: tuple[str, ...] = ()) -> Any:
    """The places in a nested state, but for those whose keys begin so."""
    is_kept = lambda item: (
        isinstance(item, dict | list)
        or (isinstance(item, Place) and not item.key.startswith(without))
    )
    if isinstance(value, dict):
        return {key: _tensors(item, without) for key, item in value.items() if is_kept(item)}
    if isinstance(value, list):
        return [_tensors(item, without) for item in value if is_kept(item)]
    return value
