"""Megatron's AdamW: building it, the two halves of its step, and loading its states."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import FP32Optimizer

from emu3_megatron import upstream
from emu3_megatron.training.engines.parameters import overrides
from emu3_megatron.training.interfaces import EngineSetting

upstream.copy_saved_states_only()

# The one format of the distributed optimizer that any layout reads.
RESHARDABLE = "fully_reshardable"


def build_optimizer(setting: EngineSetting, model: DistributedDataParallel) -> MegatronOptimizer:
    """AdamW over the model's parameters; matrices decay, norms do not."""
    bf16, settings = setting.precision == "bf16", setting.optimizer
    config = OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=0.0,  # nobody reads it: our schedule sets the rates
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.epsilon,
        clip_grad=settings.clip,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=setting.parallel.distributed_optimizer,
    )
    groups = overrides(model.module, settings.multipliers, config)
    optimizer = get_megatron_optimizer(config, [model], config_overrides=groups)
    if torch.cuda.is_available():
        fuse(optimizer)
    # Megatron leaves it to its schedule to give each group its share of the decay.
    for group in optimizer.param_groups:
        group["weight_decay"] = settings.weight_decay * group.get("wd_mult", 1.0)
    return optimizer


def fuse(optimizer: MegatronOptimizer) -> None:
    """Let torch's AdamW make its step in one kernel, as TransformerEngine's and apex's do.

    Megatron takes torch's where neither is installed, and does not ask it to.
    """
    for adam in _torch_adams(optimizer):
        for group in adam.param_groups:
            group["fused"], group["foreach"] = True, False


def set_rate(optimizer: MegatronOptimizer, lr: float) -> None:
    """The learning rate of the next step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_mult", 1.0)


def gradient_norm(optimizer: MegatronOptimizer) -> float:
    """Norm of the whole gradient, over all ranks. The gradients are ready for `take_step` then."""
    optimizer.prepare_grads()
    return float(optimizer.get_grad_norm())


def take_step(optimizer: MegatronOptimizer, grad_norm: float) -> None:
    """Clip and move the weights: the second half of Megatron's `optimizer.step()`."""
    for part in _parts(optimizer):
        if part.config.clip_grad > 0 and (parameters := part.get_parameters()):
            clip_grad_by_total_norm_fp32(parameters, part.config.clip_grad, grad_norm)
    optimizer.step_with_ready_grads()


def allocate_states(optimizer: MegatronOptimizer) -> None:
    """Give torch's Adam its states before the first step, as loading needs to know their shapes."""
    for adam in _torch_adams(optimizer):
        for group in adam.param_groups:
            for parameter in group["params"]:
                adam.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device if group["fused"] else None),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


def load_states(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """Load the states of parameters that `sharded_state_dict` described, and Adam's step.

    Of its groups nothing is loaded: rates, decay and betas are the recipe's, and Megatron-core
    would look for saved groups of the same numbers, which another kind of optimizer saves
    elsewhere.
    """
    (part,) = _parts(optimizer)
    step = float(next(_steps(state), 0))
    groups = part.optimizer.state_dict()["param_groups"]
    if not _is_torch_adam(part.optimizer):
        groups = [{**group, "step": int(step)} for group in groups]
    if isinstance(part, DistributedOptimizer):
        groups = [{**group, "step": step} for group in groups]
        state = {**state, "param_state_sharding_type": RESHARDABLE}
        part.load_state_dict({**state, "optimizer": {"param_groups": groups}})
    elif isinstance(part, FP32Optimizer):
        part.load_state_dict(_inner(state, groups, step))
    else:
        saved = {"fp32_from_fp16_params": part.fp32_from_float16_groups, **state}
        part.load_state_dict({**saved, "optimizer": _inner(state["optimizer"], groups, step)})
    for adam in _torch_adams(optimizer):
        for states in adam.state.values():
            # The distributed optimizer hands all parameters one tensor, which torch would then
            # increment once for each of them.
            # A fused step wants it on the device.
            fused = adam.param_groups[0]["fused"]
            device = states["exp_avg"].device if fused else states["step"].device
            states["step"] = states["step"].to(device, copy=True)


def _inner(state: dict[str, Any], groups: list[Any], step: float) -> dict[str, Any]:
    """The state of Adam itself, as Megatron-core hands it on to each parameter."""
    states = {key: value for key, value in state["state"].items() if key != "common_step"}
    return {"state": {**states, "common_step": torch.tensor(step)}, "param_groups": groups}


def _steps(state: Any) -> Iterator[float]:
    """The updates that Adam has made, wherever a checkpoint holds their number."""
    if isinstance(state, dict):
        yield from (state[key] for key in ("common_step", "step") if key in state)
    if isinstance(state, dict | list):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _steps(value)


def masters(
    optimizer: MegatronOptimizer,
) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor, slice]]:
    """Each parameter that this rank's Adam moves, what it moves, and which elements those are."""
    (part,) = _parts(optimizer)
    if isinstance(part, DistributedOptimizer):
        for parameter, (group, order) in part.model_param_group_index_map.items():
            held = part._get_model_param_range_map(parameter)["param"]
            master = part.optimizer.param_groups[group]["params"][order]
            yield parameter, master.data, slice(held.start, held.end)
    elif isinstance(part, FP32Optimizer):
        for parameter in part.get_parameters():
            yield parameter, parameter.data, slice(None)
    else:
        pairs = zip(part.float16_groups, part.fp32_from_float16_groups, strict=True)
        for parameter, master in chain.from_iterable(zip(*pair, strict=True) for pair in pairs):
            yield parameter, master.data, slice(None)


def _torch_adams(optimizer: MegatronOptimizer) -> list[torch.optim.Optimizer]:
    """The inner optimizers that are torch's; TransformerEngine's and apex's need no help."""
    return [part.optimizer for part in _parts(optimizer) if _is_torch_adam(part.optimizer)]


def _is_torch_adam(inner: Any) -> bool:
    return isinstance(inner, torch.optim.Adam | torch.optim.AdamW)


def _parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    return getattr(optimizer, "chained_optimizers", [optimizer])
