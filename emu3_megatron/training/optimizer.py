"""The trainable whole: decoder, gradient buffers, AdamW and its schedule, all Megatron's."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from emu3_megatron import upstream
from emu3_megatron.config import Recipe
from emu3_megatron.model import Decoder, build_decoder

upstream.copy_saved_states_only()

_RATES = ("max_lr", "min_lr", "start_wd", "end_wd")


@dataclass(frozen=True)
class Trainable:
    """A decoder under training.

    Attributes:
        decoder: the bare decoder; its weights are the live ones.
        model: the decoder as Megatron's schedule runs it, with gradient buffers.
    """

    decoder: Decoder
    model: DistributedDataParallel
    optimizer: MegatronOptimizer
    schedule: OptimizerParamScheduler


def build_trainable(recipe: Recipe) -> Trainable:
    """Build this rank's share of decoder and optimizer; weights drawn from the recipe's seed."""
    bf16 = recipe.precision == "bf16"
    decoder = build_decoder(
        recipe.model,
        recipe.parallel,
        seed=recipe.run.seed,
        bf16=bf16,
        recompute=recipe.recompute,
        backend=recipe.backend,
    )
    config = decoder.config
    model = DistributedDataParallel(
        config,
        DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=recipe.parallel.distributed_optimizer,
        ),
        decoder,
    )
    optimizer = get_megatron_optimizer(_optimizer_config(recipe), [model])
    config.grad_scale_func = optimizer.scale_loss
    config.no_sync_func = model.no_sync
    config.finalize_model_grads_func = _finalize_gradients
    return Trainable(decoder, model, optimizer, _build_schedule(recipe, optimizer))


def _finalize_gradients(model: list[torch.nn.Module], num_tokens: Any, **kwargs: Any) -> None:
    """Sum gradients over ranks. They are already divided by the global weight, not by tokens."""
    finalize_model_grads(model, None, **kwargs)


def _optimizer_config(recipe: Recipe) -> OptimizerConfig:
    bf16 = recipe.precision == "bf16"
    settings = recipe.optimizer
    return OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=settings.min_lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.epsilon,
        clip_grad=settings.clip,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=recipe.parallel.distributed_optimizer,
    )


def _build_schedule(recipe: Recipe, optimizer: MegatronOptimizer) -> OptimizerParamScheduler:
    settings = recipe.optimizer
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=settings.warmup_steps,
        # Reached after the last step: none is taken at a rate of zero.
        lr_decay_steps=recipe.run.steps + 1,
        lr_decay_style="cosine",
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )


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


def set_schedule(schedule: OptimizerParamScheduler, step: int) -> None:
    """Rates as they are after `step` steps: a function of the recipe and the step alone."""
    schedule.num_steps = 0
    schedule.step(step)


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
