"""Starts and stops the processes of a run, and says which ranks this one is."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from emu3_megatron.errors import InputError
from emu3_megatron.parallel.groups import token_group

_TIMEOUT = timedelta(minutes=30)
# A rank may read a slow disk for hours while the others wait; torch would end them.
UNDER_WATCH = timedelta(days=7)


@dataclass(frozen=True)
class Mesh:
    """This process's place in tensor x context x data parallelism.

    Data parallel ranks read different sequences, context parallel ranks different tokens of the
    same sequence, tensor parallel ranks the same tokens.
    """

    rank: int
    size: int
    tensor_rank: int
    tensor_size: int
    context_rank: int
    context_size: int
    data_rank: int
    data_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for all: logs, writes, draws."""
        return self.rank == 0

    def sum_over_tokens(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum in place over the ranks that hold different tokens (data x context)."""
        dist.all_reduce(tensor, group=token_group())
        return tensor

    def seed(self, seed: int, step: int) -> None:
        """Set all random states from (seed, step) alone, so that none must be saved to resume.

        Tensor parallel ranks share the default state and differ in Megatron's tracked one; ranks
        with other tokens differ in both.
        """
        token_rank = self.data_rank * self.context_size + self.context_rank
        mixed = (seed * 1_000_003 + step * 8_191 + token_rank * 131) % (1 << 31)
        torch.manual_seed(mixed)
        model_parallel_cuda_manual_seed(mixed)


def start(tensor: int = 1, context: int = 1, timeout: timedelta = _TIMEOUT) -> Mesh:
    """Join the processes that torchrun or Slurm started, or run alone, and build the groups.

    Args:
        timeout: of a collective, by torch; `UNDER_WATCH` where a watchdog ends what hangs.

    Raises:
        InputError: the number of processes is not a multiple of tensor x context.
    """
    device = _start_processes(timeout)
    size = dist.get_world_size()
    if size % (tensor * context):
        raise InputError(
            f"parallel.tensor={tensor} x parallel.context={context} does not divide the "
            f"{size} processes; start a multiple of {tensor * context}"
        )
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor,
        context_parallel_size=context,
        distributed_timeout_minutes=int(timeout.total_seconds() // 60),
    )
    return Mesh(
        rank=dist.get_rank(),
        size=size,
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=tensor,
        context_rank=parallel_state.get_context_parallel_rank(),
        context_size=context,
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=size // (tensor * context),
        device=device,
    )


def _start_processes(timeout: timedelta) -> torch.device:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        device, backend = torch.device("cuda", torch.cuda.current_device()), "nccl"
    else:
        device, backend = torch.device("cpu"), "gloo"
    if dist.is_initialized():
        return device
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=timeout)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return device


def stop(keep_processes: bool = False) -> None:
    """Leave the groups, and the other processes too unless another layout is to follow."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized() and not keep_processes:
        dist.destroy_process_group()
