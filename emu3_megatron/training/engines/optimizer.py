"""Megatron's AdamW: building it, the two halves of its step, and loading its states."""

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

from emu3_megatron import upstream
from emu3_megatron.training.interfaces import EngineSetting

upstream.copy_saved_states_only()

_RATES = ("max_lr", "min_lr", "start_wd", "end_wd")


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
    optimizer = get_megatron_optimizer(config, [model])
    # Megatron leaves it to its schedule to give each group its share of the decay.
    for group in optimizer.param_groups:
        group["weight_decay"] = settings.weight_decay * group.get("wd_mult", 1.0)
    return optimizer


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
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


def load_states(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """Load what `sharded_state_dict` described; rates, decay and betas stay the recipe's."""
    settings = [
        {name: value for name, value in group.items() if name not in ("params", "step")}
        for group in optimizer.param_groups
    ]
    for saved in _saved_groups(state):
        # Megatron-core 0.19 looks for the group of the same rates, which the recipe may change.
        saved.update({name: settings[0][name] for name in _RATES if name in settings[0]})
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    for adam in _torch_adams(optimizer):
        for states in adam.state.values():
            # The distributed optimizer hands all parameters one tensor, which torch would then
            # increment once for each of them.
            states["step"] = states["step"].clone()


def _saved_groups(state: dict[Any, Any]) -> Iterator[dict[str, Any]]:
    for name, value in state.items():
        if name == "param_groups":
            yield from value
        elif isinstance(value, dict):
            yield from _saved_groups(value)


def _torch_adams(optimizer: MegatronOptimizer) -> list[torch.optim.Optimizer]:
    """The inner optimizers that are torch's; TransformerEngine's and apex's need no help."""
    torch_kinds = (torch.optim.Adam, torch.optim.AdamW)
    return [p.optimizer for p in _parts(optimizer) if isinstance(p.optimizer, torch_kinds)]


def _parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    return getattr(optimizer, "chained_optimizers", [optimizer])
