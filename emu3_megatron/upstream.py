"""Every patch of megatron-core and torch, with its reason and the versions it was tested with.

Each is a function that its user calls at import; calling it again changes nothing. It says why it
is there and which versions it was tested with. Its test in tests/test_upstream.py shows the fault
without it, and so fails when a release no longer needs it: remove both then. The stand-in for a GPU
is no patch of a fault; it is `parallel/cpu.py`.
"""

import copy
import functools
import queue
from types import SimpleNamespace
from typing import Any

from emu3_megatron import progress


def copy_saved_states_only() -> None:
    """Let the distributed optimizer load the states that a checkpoint holds, and no others.

    Megatron-core copies every state of the inner optimizer and fails on torch's `step`, which
    checkpoints hold in the parameter groups: KeyError in 0.16.1 and 0.19.2 where neither
    TransformerEngine nor apex is the inner optimizer.
    """
    import torch
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    original = DistributedOptimizer._set_main_param_and_optimizer_states
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    @torch.no_grad()
    def copy_saved_states(
        self: Any, model_param: torch.nn.Parameter, tensors: dict[str, torch.Tensor]
    ) -> None:
        group, order = self.model_param_group_index_map[model_param]
        main_param = self.optimizer.param_groups[group]["params"][order]
        targets = {"param": main_param, **self.optimizer.state[main_param]}
        for name, tensor in tensors.items():
            targets[name].copy_(tensor)

    DistributedOptimizer._set_main_param_and_optimizer_states = copy_saved_states


def write_without_manager() -> None:
    """Keep megatron-core's checkpoint writer from starting a manager process.

    It serves a queue that our own background writer does not use, outlives a killed job, and runs
    the entry script again (0.16.1, 0.19.2).
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    if filesystem_async._results_queue is None:
        filesystem_async._results_queue = queue.SimpleQueue()


def mark_loaded_tensors() -> None:
    """Let every tensor that torch has read from a checkpoint be a mark of progress.

    Loading is one call, which takes hours from a slow disk, and torch tells nobody how far it is
    (2.8 to 2.13).
    """
    from torch.distributed.checkpoint import DefaultLoadPlanner

    planner: Any = DefaultLoadPlanner
    original = planner.commit_tensor
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def commit_and_mark(self: Any, *arguments: Any) -> None:
        original(self, *arguments)
        progress.mark()

    planner.commit_tensor = commit_and_mark


def add_weight_gradients_by_torch() -> None:
    """Let Megatron's linear layers add a weight's gradient to its buffer in the product itself.

    They know one way, apex's `fused_weight_gradient_mlp_cuda`, and refuse
    `gradient_accumulation_fusion` where it is not installed (0.16.1, 0.19.2), though torch's own
    product has had an output type of its own since 2.8. Never run on a GPU.
    """
    from megatron.core.tensor_parallel import layers

    if not layers._grad_accum_fusion_available:
        layers.fused_weight_gradient_mlp_cuda = SimpleNamespace(
            wgrad_gemm_accum_fp32=_add_weight_gradient
        )
        layers._grad_accum_fusion_available = True


def _add_weight_gradient(input_ti: Any, gradient_to: Any, buffer_oi: Any) -> None:
    """buffer += gradient.T @ input, in the buffer's type."""
    import torch

    if gradient_to.dtype == buffer_oi.dtype:
        buffer_oi.addmm_(gradient_to.t(), input_ti)
    elif buffer_oi.is_cuda:
        torch.addmm(buffer_oi, gradient_to.t(), input_ti, out_dtype=buffer_oi.dtype, out=buffer_oi)
    else:  # the CPU has no product with an output type of its own
        buffer_oi.add_(gradient_to.t() @ input_ti)


def mlp_spec(submodules: Any) -> Any:
    """Megatron's MLP in a transformer layer, as the installed release wants it described.

    0.19.2 takes the `ModuleSpec` that 0.16.1 needs too, but logs "Rewrapping ModuleSpec …" on
    every start, before messages of ours.
    """
    from megatron.core.transformer import ModuleSpec
    from megatron.core.transformer.mlp import MLP

    if hasattr(MLP, "as_mlp_submodule"):
        return functools.partial(MLP.as_mlp_submodule, submodules=submodules)
    return ModuleSpec(MLP, submodules=submodules)


def without_data_on_meta(layer: type) -> type:
    """One of Megatron's layers of TransformerEngine, which can be made on the meta device.

    Where its own layers take torch's default device (`use_cpu_initialization`), megatron-core makes
    TransformerEngine's on the CPU and fills them from tensors on the default device: on meta torch
    says "Cannot copy out of meta tensor" (0.16.1).
    """
    import torch

    def make(self: Any, *arguments: Any, config: Any, **settings: Any) -> None:
        if torch.empty(0).is_meta:
            config = copy.copy(config)
            config.use_cpu_initialization, config.init_model_with_meta_device = False, True
        layer.__init__(self, *arguments, config=config, **settings)  # type: ignore[misc]

    return type(layer.__name__, (layer,), {"__init__": make})
