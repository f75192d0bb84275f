"""An exponential moving average of the weights, in fp32, divided as the optimizer's states are."""

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor

from emu3_megatron.checkpoints.state import State
from emu3_megatron.model import Decoder
from emu3_megatron.model.opening import AVERAGE, sharded_weights
from emu3_megatron.parallel.groups import token_group
from emu3_megatron.training.engines.optimizer import masters


class WeightAverage:
    """average = decay x average + (1 - decay) x weights after each step that is taken.

    Args:
        optimizer: whose fp32 weights are averaged; this rank's shard of them, if it divides them.
        divided: it does.
    """

    def __init__(self, decoder: Decoder, optimizer: MegatronOptimizer, decay: float, divided: bool):
        self.decoder, self.decay, self.divided = decoder, decay, divided
        held = list(masters(optimizer))
        self._parts = {
            parameter: (number, part) for number, (parameter, _, part) in enumerate(held)
        }
        self._masters = [master for _, master, _ in held]
        self._averages = [master.clone() for master in self._masters]

    def restart(self) -> None:
        """Begin anew with the weights as they are."""
        torch._foreach_copy_(self._averages, self._masters)

    def update(self) -> None:
        torch._foreach_lerp_(self._averages, self._masters, 1 - self.decay)

    def state_dict(self) -> State:
        """Every weight's average, whole; frozen ones are their own."""
        places = sharded_weights(self.decoder)
        return {
            name: _place(places[name], self._whole(parameter).cpu())
            for name, parameter in self.decoder.named_parameters()
        }

    def template(self) -> State:
        places = sharded_weights(self.decoder)
        return {
            name: _place(places[name], torch.empty(parameter.shape, device="cpu"))
            for name, parameter in self.decoder.named_parameters()
        }

    def load_state_dict(self, state: State) -> None:
        for name, parameter in self.decoder.named_parameters():
            if parameter in self._parts:
                number, part = self._parts[parameter]
                average = self._averages[number]
                average.copy_(state[name].flatten()[part].view(average.shape))

    def _whole(self, parameter: torch.nn.Parameter) -> Tensor:
        """A collective, where the optimizer divides weights."""
        if not parameter.requires_grad:
            return parameter.detach().float()
        if not self.divided:
            return self._averages[self._parts[parameter][0]]
        whole = torch.zeros(parameter.numel(), device=parameter.device)
        if parameter in self._parts:
            number, part = self._parts[parameter]
            whole[part] = self._averages[number]
        dist.all_reduce(whole, group=token_group())
        return whole.view(parameter.shape)


def _place(place: Any, data: Tensor) -> Any:
    key = AVERAGE + place.key
    if isinstance(place, ShardedTensorFactory):
        return replace(place, key=key, data=data)
    assert isinstance(place, ShardedTensor)
    return replace(place, key=key, data=data, dtype=data.dtype)
