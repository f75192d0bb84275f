"""DeepSpeed by ZeRO stage: starting it, and what its engine does not offer for all stages alike.

Everything here that is not in DeepSpeed's documentation was read in version 0.19.8, to which the
extra `deepspeed` of this package is bound; tests/engines holds each function to it.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import Parameter

from emu3_megatron.config.engines import DeepSpeedConfig
from emu3_megatron.errors import InputError
from emu3_megatron.training.interfaces import EngineSetting

STATES = ("exp_avg", "exp_avg_sq")  # of AdamW, a value for each weight


def require_deepspeed(section: DeepSpeedConfig) -> None:
    """Import what the engine needs, and set it up for this machine.

    Raises:
        InputError: a package is missing, or DeepSpeed does not know a key of `engine.zero`.
    """
    # DeepSpeed reads it even where there is one process, which no launcher told.
    os.environ.setdefault("LOCAL_RANK", "0")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
        import transformers  # noqa: F401

        if section.lora:
            import peft  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"engine.kind=deepspeed: {error}; pip install 'emu3-megatron[deepspeed]'"
        ) from error
    if not torch.cuda.is_available():
        # It would compile a CPU all-reduce at start, which takes a C++ compiler and a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    try:
        deepspeed.runtime.zero.config.DeepSpeedZeroConfig(**section.zero)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"engine.zero.{key}: {first['msg']} (DeepSpeed's answer)") from None


def settings(section: DeepSpeedConfig, setting: EngineSetting) -> dict[str, Any]:
    """DeepSpeed's configuration.

    It never sees more than one micro-batch a step: the engine tells it where a step ends.
    """
    zero: dict[str, Any] = {**section.zero, "stage": section.stage}
    pin = torch.cuda.is_available()
    if section.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pin}
    if section.offload == "weights":
        zero["offload_param"] = {"device": "cpu", "pin_memory": pin}
    values: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Without ZeRO the engine clips itself.
        "gradient_clipping": setting.optimizer.clip if section.stage else 0.0,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    if setting.precision == "bf16":
        values["bf16"] = {"enabled": True}
        values["data_types"] = {"grad_accum_dtype": "fp32"}
        values["communication_data_type"] = "fp32"
    return values


@contextmanager
def whole(parameters: Sequence[Parameter], to_write: bool = False) -> Iterator[None]:
    """Parameters with all their elements, which ZeRO 3 divides. Every rank must call.

    Args:
        to_write: keep what the first rank writes into them.
    """
    if not hasattr(parameters[0], "ds_id"):
        yield
        return
    import deepspeed

    rank = 0 if to_write else None
    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=rank):
        yield


def shape_of(parameter: Parameter) -> torch.Size:
    """The shape of a whole parameter."""
    return getattr(parameter, "ds_shape", parameter.shape)


def allocate_states(optimizer: Any) -> None:
    """Give AdamW its states before the first step, so that they can be saved and loaded."""
    adam = getattr(optimizer, "optimizer", optimizer)
    for flat in _flat_parameters(optimizer):
        adam.state[flat] = {
            "step": torch.zeros((), dtype=torch.float32, device=flat.device),
            **{name: torch.zeros_like(flat) for name in STATES},
        }
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        optimizer._lazy_init_hp_params_optimizer_state()


def _flat_parameters(optimizer: Any) -> list[Tensor]:
    """What AdamW really moves on this rank: flat parts of fp32 weights, or the parameters."""
    for name in (
        "fp32_partitioned_groups_flat",  # stage 3
        "single_partition_of_fp32_groups",  # stages 1 and 2
        "fp32_groups_flat_partition",  # stage 1 in bf16
    ):
        if hasattr(optimizer, name):
            return getattr(optimizer, name)
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def steps_taken(optimizer: Any) -> int:
    """Updates that AdamW has made."""
    adam = getattr(optimizer, "optimizer", optimizer)
    return int(adam.state[_flat_parameters(optimizer)[0]]["step"])


def set_steps_taken(optimizer: Any, steps: int) -> None:
    """Let AdamW go on behind so many updates."""
    adam = getattr(optimizer, "optimizer", optimizer)
    for flat in _flat_parameters(optimizer):
        adam.state[flat]["step"].fill_(steps)


def refresh_masters(optimizer: Any) -> None:
    """Take the parameters over into the fp32 weights that AdamW moves."""
    if hasattr(optimizer, "refresh_fp32_params"):
        optimizer.refresh_fp32_params()


def gradient_norm(optimizer: Any) -> float:
    """Norm of the whole gradient over all ranks; infinite where a gradient is not finite."""
    if hasattr(optimizer, "scaled_global_norm"):  # stages 1 and 2
        return float(optimizer.scaled_global_norm())
    if hasattr(optimizer, "_get_norm_groups"):  # stage 3
        from deepspeed.runtime.utils import combine_grad_norm_groups

        return float(combine_grad_norm_groups(optimizer._get_norm_groups()))
    if hasattr(optimizer, "get_grads_for_norm"):  # stage 1 in bf16
        return float(torch.nn.utils.get_total_norm(optimizer.get_grads_for_norm()[0]))
    return float(torch.nn.utils.get_total_norm(_gradients(optimizer)))


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [p.grad for p in parameters if p.grad is not None]


def discard_gradients(optimizer: Any) -> None:
    """Forget the gradients of a step whose update is left out, as DeepSpeed does on overflow."""
    optimizer.zero_grad(set_to_none=True)
    if hasattr(optimizer, "_overflow_clean_up"):  # stage 3
        optimizer._overflow_clean_up(1.0)
    elif hasattr(optimizer, "scaled_global_norm"):  # stages 1 and 2
        from deepspeed.runtime.zero.stage_1_and_2 import INITIAL_MICRO_STEP_ID

        optimizer.micro_step_id = INITIAL_MICRO_STEP_ID
        if optimizer.cpu_offload:
            optimizer.reset_cpu_buffers()
        for group in optimizer.averaged_gradients:
            optimizer.averaged_gradients[group] = optimizer.all_grad_tensors[group] = None


def full_state(optimizer: Any, parameter: Parameter, name: str | None) -> Tensor:
    """One of AdamW's states of a parameter, or without a name its fp32 weights; whole.

    Every rank must call.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if not _has_masters(parameter):
        return parameter.detach() if name is None else optimizer.state[parameter][name]
    if name is None:
        return safe_get_full_fp32_param(parameter)
    return safe_get_full_optimizer_state(parameter, name)


def set_full_state(optimizer: Any, parameter: Parameter, name: str | None, value: Tensor) -> None:
    """The inverse of `full_state`."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if not _has_masters(parameter):
        target = parameter.data if name is None else optimizer.state[parameter][name]
        target.copy_(value)
    elif name is None:
        safe_set_full_fp32_param(parameter, value)
    else:
        safe_set_full_optimizer_state(parameter, value, name)


def _has_masters(parameter: Parameter) -> bool:
    """Whether DeepSpeed keeps fp32 weights of a parameter; without ZeRO it does not."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")
