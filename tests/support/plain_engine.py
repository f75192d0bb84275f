"""A second engine, of plain torch: it shows that training knows an interface and not Megatron."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from emu3_megatron.config.base import Component
from emu3_megatron.model import Decoder, build_decoder
from emu3_megatron.model.opening import load_decoder, sharded_weights
from emu3_megatron.training.interfaces import EngineSetting


class PlainTorch:
    """One process, autograd's own gradients, torch's AdamW."""

    class Config(Component):
        """Nothing to set."""

    def __init__(self, section: Component, setting: EngineSetting):
        settings = setting.optimizer
        self.live = build_decoder(setting.model, setting.parallel, seed=setting.seed)
        groups = [
            {"params": [p for p in self.live.parameters() if p.dim() > 1]},
            {"params": [p for p in self.live.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )
        self.clip = settings.clip

    def forward_backward(self, batches: Any, forward: Any) -> list[Any]:
        self.live.train()
        self.optimizer.zero_grad()
        parts = []
        for batch in batches:
            loss, sums = forward(self.live, batch)
            loss.backward()
            parts.append(sums)
        return parts

    def grad_norm(self) -> float:
        return float(torch.nn.utils.get_total_norm([p.grad for p in self.live.parameters()]))

    def update(self, grad_norm: float, lr: float) -> None:
        if self.clip:
            norm = torch.tensor(grad_norm)
            torch.nn.utils.clip_grads_with_norm_(self.live.parameters(), self.clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()

    @contextmanager
    def decoder(self) -> Iterator[Decoder]:
        self.live.eval()
        with torch.no_grad():
            yield self.live

    def frozen(self, checkpoint: Path) -> Decoder:
        decoder = deepcopy(self.live).eval().requires_grad_(False)
        load_decoder(checkpoint, decoder)
        return decoder

    def start_from(self, checkpoint: Path) -> None:
        load_decoder(checkpoint, self.live)

    def state_dict(self, saved: Any = None) -> dict[str, Any]:
        for parameter in self.live.parameters() if saved else ():
            zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.zeros(()), **zeros}
        states = self.optimizer.state_dict()["state"]
        adam = {str(number): state for number, state in states.items()}
        return {"model": sharded_weights(self.live), "adam": adam}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.live.load_state_dict(state["model"])
        adam = {int(number): values for number, values in state["adam"].items()}
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": adam, "param_groups": groups})
