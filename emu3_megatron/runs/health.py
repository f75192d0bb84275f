"""Looks at this rank's GPU through NVML, and at all of them with one all-reduce."""

import importlib
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

# Of NVML's reasons for low clocks, those that a healthy GPU does not have while it idles.
_SLOWDOWNS = {
    0x08: "hardware slowdown",
    0x20: "too hot (software slowdown)",
    0x40: "too hot (hardware slowdown)",
    0x80: "power brake",
}
_UNCORRECTED, _SINCE_BOOT = 1, 0  # NVML's kinds of errors and of counters
_MOST_LINKS = 18
_TEST_BYTES = 64 << 20
_REPEATS = 5


def load_nvml() -> Any:
    """NVML's Python module, ready for use; None where there is none, or no driver."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # not installed, or an NVMLError of whatever kind
        return None
    return nvml


def gpu_faults(nvml: Any, uuid: str) -> list[str]:
    """What is wrong with a GPU: clocks, ECC, NVLink; what it does not report is passed over."""
    gpu = nvml.nvmlDeviceGetHandleByUUID(uuid)
    faults: list[str] = []
    for look in (_clocks, _memory_errors, _remapped_rows, _links):
        try:
            faults += look(nvml, gpu)
        except nvml.NVMLError:
            continue
    return faults


def _clocks(nvml: Any, gpu: Any) -> list[str]:
    reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)
    return [f"clocks are held down: {why}" for bit, why in _SLOWDOWNS.items() if reasons & bit]


def _memory_errors(nvml: Any, gpu: Any) -> list[str]:
    count = nvml.nvmlDeviceGetTotalEccErrors(gpu, _UNCORRECTED, _SINCE_BOOT)
    return [f"ECC: {count:,} errors that could not be corrected since it started"] if count else []


def _remapped_rows(nvml: Any, gpu: Any) -> list[str]:
    _, _, pending, failed = nvml.nvmlDeviceGetRemappedRows(gpu)
    faults = ["ECC: rows wait to be remapped; reset the GPU"] if pending else []
    return faults + (["ECC: a row could not be remapped; replace the GPU"] if failed else [])


def _links(nvml: Any, gpu: Any) -> list[str]:
    states = []
    for link in range(_MOST_LINKS):
        try:
            states.append(nvml.nvmlDeviceGetNvLinkState(gpu, link))
        except nvml.NVMLError:  # it has no more
            break
    if any(states) and not all(states):
        return [f"NVLink: {len(states) - sum(states)} of {len(states)} links are down"]
    return []


def try_all_reduce(
    device: torch.device, now: Callable[[], float] = time.perf_counter
) -> tuple[float, list[str]]:
    """The bus bandwidth of an all-reduce over all ranks in GB/s, and what is wrong with its sum."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    values = torch.empty(_TEST_BYTES // 4, device=device)
    begin, expected = 0.0, ranks * (ranks + 1) / 2
    is_right = torch.ones((), dtype=torch.bool, device=device)
    for repeat in range(_REPEATS + 1):
        if repeat == 1:  # the first builds the connections
            _wait(device)
            begin = now()
        values.fill_(rank + 1)
        dist.all_reduce(values)
        is_right &= (values == expected).all()
    _wait(device)
    seconds = (now() - begin) / _REPEATS
    faults = [] if bool(is_right) else ["all-reduce: a wrong sum"]
    return 2 * (ranks - 1) / ranks * _TEST_BYTES / seconds / 1e9, faults


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
