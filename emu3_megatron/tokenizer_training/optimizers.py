"""Optimizers whose state is named tensors, there from the start: Adam, and Muon beside it."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from emu3_megatron.checkpoints.state import State

Parameters = Mapping[str, nn.Parameter]

_LEAST_SIDE = 16  # of a matrix that Muon moves
_ROUNDS = 4  # of Newton-Schulz
_MOMENTS = {"first": "exp_avg", "second": "exp_avg_sq"}


class Optimizer(Protocol):
    """Moves named parameters by their gradients."""

    @property
    def parameters(self) -> Parameters: ...

    def step(self, lr: float) -> None: ...

    def forget_rows(self, name: str, rows: Tensor) -> None:
        """Zero what is remembered of rows of a parameter that were set from outside."""
        ...

    def tensors(self) -> State:
        """What a checkpoint holds, live."""
        ...

    @property
    def steps(self) -> int: ...

    def load(self, tensors: State, steps: int) -> None: ...


def zero_grads(optimizer: Optimizer) -> None:
    for parameter in optimizer.parameters.values():
        parameter.grad = None


def grads_of(optimizer: Optimizer) -> list[Tensor]:
    """The gradients, zero where no sample of this rank gave one."""
    for parameter in optimizer.parameters.values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [p.grad for p in optimizer.parameters.values() if p.grad is not None]


class Adam:
    """torch's fused Adam; its state is there before the first step, to load a checkpoint into."""

    def __init__(self, parameters: Parameters, betas: tuple[float, float], epsilon: float = 1e-8):
        self.parameters = dict(parameters)
        self.steps = 0
        self._adam = torch.optim.Adam(
            self.parameters.values(), betas=betas, eps=epsilon, fused=True
        )
        for parameter in self.parameters.values():
            self._adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                **{name: torch.zeros_like(parameter) for name in _MOMENTS.values()},
            }

    def step(self, lr: float) -> None:
        for group in self._adam.param_groups:
            group["lr"] = lr
        self._adam.step()
        self.steps += 1

    @torch.no_grad()
    def forget_rows(self, name: str, rows: Tensor) -> None:
        state = self._adam.state[self.parameters[name]]
        for moment in _MOMENTS.values():
            state[moment][rows] = 0

    def tensors(self) -> State:
        return {
            short: {name: self._adam.state[p][moment] for name, p in self.parameters.items()}
            for short, moment in _MOMENTS.items()
        }

    @torch.no_grad()
    def load(self, tensors: State, steps: int) -> None:
        self.steps = steps
        for parameter in self.parameters.values():
            self._adam.state[parameter]["step"].fill_(steps)
        _copy(tensors, self.tensors())


class AdamWithMuon:
    """Muon for the weights of 2D convolutions, as matrices [out, in * k * k]; Adam for the rest.

    Muon moves a matrix by its momentum made orthogonal (K. Jordan's five coefficients of
    Newton-Schulz, four rounds), scaled by 0.2 sqrt(max(out, in * k * k)) to the size of Adam's
    updates (Moonlight, arXiv 2502.16982), so that both take one learning rate. `torch.optim.Muon`
    computes in bf16 and takes matrices alone; this one computes in the precision of the weights.

    Args:
        adam: over those of the parameters that Muon does not move.
        times: Muon's learning rate is so many times Adam's.
    """

    def __init__(self, parameters: Parameters, adam: Adam, momentum: float, times: float):
        self.parameters = dict(parameters)
        self.adam, self.momentum, self.times = adam, momentum, times
        self.matrices = {n: p for n, p in parameters.items() if n not in adam.parameters}
        self._momenta = {name: torch.zeros_like(p) for name, p in self.matrices.items()}

    @property
    def steps(self) -> int:
        return self.adam.steps

    @torch.no_grad()
    def step(self, lr: float) -> None:
        for name, parameter in self.matrices.items():
            assert parameter.grad is not None
            momentum = self._momenta[name].lerp_(parameter.grad, 1 - self.momentum)
            ahead = parameter.grad.lerp(momentum, self.momentum).flatten(1)
            scale = 0.2 * max(ahead.shape) ** 0.5
            parameter.sub_(orthogonal(ahead).view_as(parameter), alpha=lr * self.times * scale)
        self.adam.step(lr)

    def forget_rows(self, name: str, rows: Tensor) -> None:
        self.adam.forget_rows(name, rows)

    def tensors(self) -> State:
        return {**self.adam.tensors(), "momentum": self._momenta}

    @torch.no_grad()
    def load(self, tensors: State, steps: int) -> None:
        self.adam.load(tensors, steps)
        _copy({"momentum": tensors["momentum"]}, {"momentum": self._momenta})


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon moves a parameter: weights of 2D convolutions between features.

    Not those of the first and last layers, nor of SpatialNorm, whose other side is few channels.
    """
    return (
        parameter.ndim == 4
        and min(parameter.flatten(1).shape) >= _LEAST_SIDE
        and not any(part in name for part in ("conv_in", "conv_out", "conv_y", "conv_b"))
    )


def orthogonal(matrix_ab: Tensor) -> Tensor:
    """The nearest matrix of orthogonal rows or columns, roughly: singular values near 1.

    Newton-Schulz: x becomes a x + b (x x^T) x + c (x x^T)^2 x, by products of the smaller side.
    """
    is_tall = matrix_ab.shape[0] > matrix_ab.shape[1]
    x = matrix_ab.T if is_tall else matrix_ab
    scale = 1 / (x.norm() + 1e-12)
    square = (x @ x.T) * scale**2
    factor = None
    for index in range(_ROUNDS):
        step = torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315)
        step.diagonal().add_(3.4445)
        factor = step if factor is None else step @ factor
        if index < _ROUNDS - 1:
            square = step @ square @ step
    assert factor is not None
    x = (factor @ x) * scale
    return x.T if is_tall else x


def _copy(given: State, live: State) -> None:
    for short, tensors in live.items():
        for name, tensor in tensors.items():
            tensor.copy_(given[short][name])
