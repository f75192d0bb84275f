"""The engine on DeepSpeed: ZeRO over data parallel ranks, around transformers' Emu3."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from torch import Tensor
from torch.nn import Parameter

from emu3_megatron.checkpoints.state import Saved, State
from emu3_megatron.config.engines import DeepSpeedConfig
from emu3_megatron.config.training import OptimizerConfig
from emu3_megatron.data.batches import Batch
from emu3_megatron.parallel.votes import on_first_rank
from emu3_megatron.training.engines import lora, zero
from emu3_megatron.training.engines.hub_decoder import HubDecoder
from emu3_megatron.training.engines.hub_weights import HubWeights
from emu3_megatron.training.interfaces import EngineSetting, Sums


class DeepSpeedEngine:
    """DeepSpeed's schedule of gradients and weights, and torch's AdamW.

    A checkpoint holds the whole model, adapters merged, as the engine on Megatron-core writes it:
    everything that reads a checkpoint reads this one. The optimizer's states stand beside it by
    parameter, so that a run goes on at any number of ranks and any stage.

    Attributes:
        live: the bare decoder; its weights are those that move.
    """

    def __init__(self, section: DeepSpeedConfig, setting: EngineSetting):
        zero.require_deepspeed(section)
        self.section, self.setting = section, setting
        self.live = _build(section, setting, recompute=setting.recompute == "full")
        self.device = _device()
        self.weights = HubWeights(setting.model, _dtype(setting))
        _fill(self.live, self.weights.drawn(setting.seed, self.device))
        if section.lora:
            lora.add_adapters(self.live, section.lora)
            shapes = {n: zero.shape_of(p) for n, p in _named(self.live) if lora.is_adapter(n)}
            _fill(self.live, lora.drawn_adapters(shapes, setting.seed, self.device).items())
        self.engine = _initialize(self.live, _adam(self.live, setting.optimizer), section, setting)
        zero.allocate_states(self.optimizer)
        self._to_discard = False

    @property
    def optimizer(self) -> Any:
        """DeepSpeed's optimizer around AdamW; without ZeRO AdamW itself."""
        return self.engine.optimizer

    def forward_backward(
        self, batches: Sequence[Batch], forward: Callable[[Any, Batch], tuple[Tensor, Sums]]
    ) -> list[Sums]:
        """See `Engine`."""
        self.engine.train()
        if self._to_discard:
            zero.discard_gradients(self.optimizer)
        self._to_discard = True
        parts = []
        for number, batch in enumerate(batches, start=1):
            self.engine.set_gradient_accumulation_boundary(number == len(batches))
            loss, sums = forward(self.engine, batch)
            # DeepSpeed averages over ranks.
            self.engine.backward(loss * dist.get_world_size(), scale_wrt_gas=False)
            parts.append(sums)
        return parts

    def grad_norm(self) -> float:
        """See `Engine`."""
        return zero.gradient_norm(self.optimizer)

    def update(self, grad_norm: float, lr: float) -> None:
        """See `Engine`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        clip = self.setting.optimizer.clip
        if clip and self.section.stage == 0:
            norm = torch.tensor(grad_norm)
            torch.nn.utils.clip_grads_with_norm_(self._trained().values(), clip, norm)
        self.engine.step()
        self._to_discard = False

    @contextmanager
    def decoder(self) -> Iterator[HubDecoder]:
        """See `Engine`."""
        self.engine.eval()
        with torch.no_grad():
            yield self.live

    def frozen(self, checkpoint: Path) -> Any:
        """See `Engine`; the checkpoint may be a Hugging Face folder."""
        return frozen_decoder(self.section, self.setting, checkpoint)

    def start_from(self, checkpoint: Path) -> None:
        """See `Engine`; the checkpoint may be a Hugging Face folder."""
        _fill(self.live, self.weights.read(checkpoint))
        zero.refresh_masters(self.optimizer)

    def _trained(self) -> dict[str, Parameter]:
        return {name: p for name, p in _named(self.live) if p.requires_grad}

    def _whole_weight(self, name: str) -> Tensor:
        """A weight of the model, its adapter merged. Every rank must call."""
        parameters = dict(_named(self.live))
        wanted = [parameters[n] for n in (name, *lora.adapters_of(name)) if n in parameters]
        with torch.no_grad(), zero.whole(wanted):
            values = [parameter.detach() for parameter in wanted]
            if len(values) == 1:
                return values[0].clone()
            assert self.section.lora
            weight, a, b = values
            return lora.merged(weight, a, b, self.section.lora)

    def write_adapters(self, folder: Path) -> None:
        """Write the adapters, if there are any, as peft does. Every rank must call."""
        section = self.section.lora
        if section is None:
            return
        adapters = {}
        for name, parameter in self._trained().items():
            with zero.whole([parameter]):
                adapters[name] = parameter.detach().cpu().clone()
        on_first_rank(lambda: lora.write_adapters(folder, adapters, section))

    def state_dict(self, saved: Saved | None = None) -> State:
        """The model as every engine saves it, and AdamW's states by parameter.

        Ranks take turns in holding the states of a parameter, on the CPU.
        """
        states: State = {}
        for number, (name, parameter) in enumerate(self._trained().items()):
            mine = number % dist.get_world_size() == dist.get_rank()
            for kind in self._kinds():
                key = f"{kind or 'weights'}.{name}"
                if saved:
                    tensor = torch.empty(zero.shape_of(parameter) if mine else 0)
                else:
                    tensor = zero.full_state(self.optimizer, parameter, kind)
                if mine:
                    states[key] = ShardedTensor.from_rank_offsets(f"adam.{key}", tensor.cpu())
        steps = torch.tensor(zero.steps_taken(self.optimizer))
        if saved:
            self._saved = saved.path
            return {"adam": states, "steps": steps}
        return {
            "model": self.weights.for_checkpoint(self._whole_weight),
            "adam": states,
            "steps": steps,
        }

    def _kinds(self) -> list[str | None]:
        """States of AdamW; None for fp32 weights, where the model does not hold them already."""
        weights = [None] if self.setting.precision == "bf16" or self.section.lora else []
        return [*weights, *zero.STATES]

    def load_state_dict(self, state: State) -> None:
        if not self.section.lora:
            self.start_from(self._saved)
        for number, (name, parameter) in enumerate(self._trained().items()):
            owner = number % dist.get_world_size()
            for kind in self._kinds():
                value = torch.empty(zero.shape_of(parameter), device=self.device)
                if owner == dist.get_rank():
                    value.copy_(state["adam"][f"{kind or 'weights'}.{name}"])
                dist.broadcast(value, owner)
                if kind is None:
                    _fill(self.live, [(name, value)])
                zero.set_full_state(self.optimizer, parameter, kind, value)
        zero.set_steps_taken(self.optimizer, int(state["steps"]))


def frozen_decoder(section: DeepSpeedConfig, setting: EngineSetting, checkpoint: Path) -> Any:
    """What `DeepSpeedEngine.frozen` returns, where nothing is trained beside it."""
    zero.require_deepspeed(section)
    decoder = _build(section, setting).requires_grad_(False).eval()
    _fill(decoder, HubWeights(setting.model, _dtype(setting)).read(checkpoint))
    # Under ZeRO 3 hooks of DeepSpeed's own gather its weights.
    return _initialize(decoder, None, section, setting) if section.stage == 3 else decoder


def _dtype(setting: EngineSetting) -> torch.dtype:
    return torch.bfloat16 if setting.precision == "bf16" else torch.float32


def _device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _build(section: DeepSpeedConfig, setting: EngineSetting, recompute: bool = False) -> HubDecoder:
    """A decoder without weights, under ZeRO 3 this rank's part of it."""
    import deepspeed

    config = zero.settings(section, setting)
    divided = deepspeed.zero.Init(config_dict_or_path=config) if section.stage == 3 else None
    before = torch.get_default_dtype()
    torch.set_default_dtype(_dtype(setting))
    try:
        with _device(), divided or nullcontext():
            decoder = HubDecoder(setting.model, setting.backend.loss, recompute)
    finally:
        torch.set_default_dtype(before)
    decoder.reset_rotary(_device())
    return decoder


def _fill(decoder: HubDecoder, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copy weights by plain name into a decoder."""
    parameters = dict(_named(decoder))
    for name, tensor in tensors:
        with torch.no_grad(), zero.whole([parameters[name]], to_write=True):
            parameters[name].copy_(tensor)


def _adam(decoder: HubDecoder, settings: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over what is trained; matrices decay, norms do not."""
    trained = [p for p in decoder.parameters() if p.requires_grad]
    is_matrix = lambda parameter: len(zero.shape_of(parameter)) > 1
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if is_matrix(p)]},
        {"params": [p for p in trained if not is_matrix(p)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def _initialize(
    decoder: HubDecoder,
    adam: torch.optim.AdamW | None,
    section: DeepSpeedConfig,
    setting: EngineSetting,
) -> Any:
    """DeepSpeed's engine around a decoder."""
    import deepspeed

    config = zero.settings(section, setting)
    with redirect_stdout(io.StringIO()):  # stage 1 in bf16 prints what memory it takes
        return deepspeed.initialize(model=decoder, optimizer=adam, config=config)[0]


def _named(decoder: torch.nn.Module) -> Iterator[tuple[str, Parameter]]:
    """Parameters by their plain names."""
    for name, parameter in decoder.named_parameters():
        yield lora.plain_name(name), parameter
