"""State of the engine on Megatron-core: what a checkpoint holds, and loading it from any of them.

There are four formats: the plain and the distributed optimizer, each in fp32 and bf16. Adam's
moments have the same keys in all. The fp32 weights that Adam moves lie under a prefix of the
optimizer's; in the format of the plain optimizer in fp32 they are the model's weights themselves.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import LocalNonpersistentObject, ShardedTensorFactory
from megatron.core.optimizer import MegatronOptimizer

from emu3_megatron.checkpoints.state import State, stored_tensors
from emu3_megatron.model import Decoder
from emu3_megatron.model.opening import AVERAGE, sharded_weights
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
_MOMENTS = "optimizer.state.exp_avg."
_MASTERS = ("optimizer.state.param.", "optimizer.state.fp32_param.")


def saved_state(decoder: Decoder, optimizer: MegatronOptimizer) -> State:
    """Weights and optimizer states, as Megatron describes them."""
    model = sharded_weights(decoder, _SHARDING)
    # Of a stack of layers some may have no states, and Megatron refuses an incomplete stack.
    has_frozen = any(not parameter.requires_grad for parameter in decoder.parameters())
    places = _layer_by_layer(decoder) if has_frozen else model
    return {"model": model, "optimizer": _states(optimizer, places, is_loading=False)}


def template(decoder: Decoder, optimizer: MegatronOptimizer, path: Path) -> State:
    """What `load` needs of a checkpoint."""
    allocate_states(optimizer)
    stored = stored_tensors(path)
    model, alone = sharded_weights(decoder, _SHARDING), _layer_by_layer(decoder)
    is_alone = lambda name: f"{_MOMENTS}{_key(alone[name])}" in stored
    places = {name: alone[name] if is_alone(name) else model[name] for name in model}
    states = _tensors(_states(optimizer, places, is_loading=True))
    own = _kind(map(_key, _places(states))), model[HEAD].data.dtype
    known = _kind(stored), stored[_key(model[HEAD])].properties.dtype
    masters_missing = any(
        _key(place) not in stored for place in _places(states) if place.key.startswith(_MASTERS)
    )
    if own != known or masters_missing:
        # The fp32 weights that it has become weights and masters here.
        model = {name: _in_fp32([alone[name], model[name]], stored) for name in model}
        states = _tensors(states, without=_MASTERS)
    return {"model": model, "optimizer": _with_zeros(states, stored)}


def has_average(path: Path) -> bool:
    """Whether a checkpoint holds a moving average of its weights."""
    return any(key.startswith(AVERAGE) for key in stored_tensors(path))


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


def _states(optimizer: MegatronOptimizer, places: State, is_loading: bool) -> State:
    metadata = {**_SHARDING, "dp_cp_group": token_group()}
    return optimizer.sharded_state_dict(places, is_loading=is_loading, metadata=metadata)


def _layer_by_layer(decoder: Decoder) -> State:
    """Where the weights would lie if layers were not stacked."""
    return sharded_weights(decoder, {**_SHARDING, "non_homogeneous_layers": True})


def _key(place: Any) -> str:
    """Under which key a checkpoint holds it; a factory's pieces have theirs from it."""
    if isinstance(place, ShardedTensorFactory):
        return place.build()[0].key
    return place.key


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


def _in_fp32(places: Sequence[Any], stored: Collection[str]) -> Any:
    """The place of a weight in fp32, as exactly as the checkpoint holds it.

    Args:
        places: of the weight alone, and in its stack of layers.
    """
    if not isinstance(places[-1], Place):
        return places[-1]
    masters = [replace(place, key=f"{m}{place.key}") for m in _MASTERS for place in places]
    place = next((place for place in masters if _key(place) in stored), places[-1])
    data = torch.empty_like(place.data, dtype=torch.float32)
    if isinstance(place, ShardedTensorFactory):
        return replace(place, data=data)
    return replace(place, data=data, dtype=data.dtype)


def _with_zeros(value: Any, stored: Collection[str]) -> Any:
    """A template in which states of what was frozen, which the checkpoint lacks, begin at zero."""
    if isinstance(value, dict):
        return {key: _with_zeros(item, stored) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_zeros(item, stored) for item in value]
    if _key(value) in stored:
        return value
    return LocalNonpersistentObject(torch.zeros_like(value.data))


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
