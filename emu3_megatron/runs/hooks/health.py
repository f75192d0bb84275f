"""A hook that looks at the GPUs and their connections before the first step."""

import socket
from typing import Any

import torch
import torch.distributed as dist

from emu3_megatron.runs.health import gpu_faults, load_nvml, try_all_reduce
from emu3_megatron.runs.interfaces import Hook, Run


class CheckHealth(Hook):
    """Says what is wrong with a GPU, by rank and host; the run goes on. Nothing on a CPU."""

    name = "health"
    order = 0  # before anything is measured

    def before_training(self, run: Run, step: int) -> None:
        if run.mesh.device.type != "cuda":
            run.events.add("health", step, skipped="no GPU")
            return
        nvml = load_nvml()
        uuid = f"GPU-{torch.cuda.get_device_properties(run.mesh.device).uuid}"
        faults = gpu_faults(nvml, uuid) if nvml else []
        bandwidth, wrong = try_all_reduce(run.mesh.device) if run.mesh.size > 1 else (0.0, [])
        self.tell(run, step, nvml is not None, [*faults, *wrong], bandwidth)

    def tell(self, run: Run, step: int, looked: bool, faults: list[str], bandwidth: float) -> None:
        """Gather what the ranks found, and say it; a call on every rank."""
        found: list[Any] = [None] * run.mesh.size
        dist.all_gather_object(found, (socket.gethostname(), looked, faults))
        unseen = sum(not was_seen for _, was_seen, _ in found)
        words = f"GPUs of {unseen} ranks not looked at: no NVML; pip install nvidia-ml-py"
        details = {"all_reduce_gb_per_second": round(bandwidth, 1), "not_looked_at": unseen}
        run.events.add("health", step, words if unseen else "", **details)
        for rank, (host, _, of_rank) in enumerate(found):
            for fault in of_rank:
                words = f"GPU of rank {rank} on {host}: {fault}"
                run.events.add("unhealthy", step, words, rank=rank, host=host, why=fault)
