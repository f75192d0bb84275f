"""Megatron's process groups, and this process's rank in each."""

import torch.distributed as dist
from megatron.core import parallel_state


def tensor_group() -> dist.ProcessGroup:
    """Ranks that share each layer."""
    return parallel_state.get_tensor_model_parallel_group()


def context_group() -> dist.ProcessGroup:
    """Ranks that hold different tokens of the same sequences."""
    return parallel_state.get_context_parallel_group()


def data_group() -> dist.ProcessGroup:
    """Ranks that read different sequences."""
    return parallel_state.get_data_parallel_group()


def token_group() -> dist.ProcessGroup:
    """Ranks that hold different tokens: data x context."""
    return parallel_state.get_data_parallel_group(with_context_parallel=True)


def tensor_rank() -> int:
    return parallel_state.get_tensor_model_parallel_rank()


def tensor_size() -> int:
    return parallel_state.get_tensor_model_parallel_world_size()
