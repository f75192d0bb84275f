"""What a third party may get wrong: each class is one mistake."""

from collections.abc import Iterator
from typing import Any

import torch

from emu3_megatron.config.base import Component, free
from emu3_megatron.runs.interfaces import Hook, Run
from support.extensions import Counting, MovingAverage, SmoothedText


class Ended(Counting):
    """A Data that gives two steps, however many are asked for."""

    def batches(self, run: Run, first: int, last: int) -> Iterator[list[Any]]:
        yield from super().batches(run, first, min(last, first + 2))


class Endless(Counting):
    """A Data that gives more steps than are asked for."""

    def batches(self, run: Run, first: int, last: int) -> Iterator[list[Any]]:
        yield from super().batches(run, first, last + 3)


class OtherSums(SmoothedText):
    """An objective with a sum that only every other micro-batch has."""

    calls = 0

    def __call__(self, decoder: Any, inputs: Any, denominators: Any) -> Any:
        loss, sums = super().__call__(decoder, inputs, denominators)
        self.calls += 1
        return loss, {**sums, "extra": torch.zeros(())} if self.calls % 2 else sums


class CalledTrainer(MovingAverage):
    name = "trainer"


class Plain(Hook):
    class Config(Component):
        size: int = free(3, "of its tensor")

    def __init__(self, section: "Plain.Config"):
        self.state = torch.zeros(section.size)


class HoldsASet(Plain):
    name = "set"

    def state_dict(self, saved: Any = None) -> dict[str, Any]:
        return {"seen": {1, 2}}


class HoldsNothing(Plain):
    name = "nothing"

    def state_dict(self, saved: Any = None) -> Any:
        return None


class HoldsATensor(Plain):
    name = "tensor"

    def state_dict(self, saved: Any = None) -> dict[str, Any]:
        return {"state": self.state}


class CannotBeBuilt(Plain):
    def __init__(self, section: Component):
        raise RuntimeError("no such\nlicence")


class NoHook:
    class Config(Component):
        pass

    def __init__(self, section: Component):
        pass
