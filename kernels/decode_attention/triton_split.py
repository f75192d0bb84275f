"""The backend of our Triton kernels: how many parts a row is read in, launch shapes, launches."""

import math
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from emu3_kernels.decode_attention.step import Step
from emu3_kernels.decode_attention.triton_kernels import merge_kernel, parts_kernel

PROGRAMS = 2  # on each multiprocessor at once; shared memory and registers allow it
MOST_PARTS = 64


class Launch(NamedTuple):
    """Keys of a block, warps that work on it, blocks loaded ahead."""

    block_n: int
    num_warps: int
    num_stages: int


def attend(step: Step) -> torch.Tensor:
    """See `decode_attention`."""
    query, positions = step.query_bwhd, step.positions.positions_bw
    queries, units = step.width * step.group, step.rows * step.kv_heads
    launch = launch_of(query.dtype, step.dim)
    parts = parts_of(units, step.bound, launch.block_n, _processors(query.device))
    out_bwhd = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    results, lse = out_bwhd, positions  # of one part: lse is not written
    if parts > 1:
        lse = query.new_empty(units, parts, queries, dtype=torch.float32)
        results = query.new_empty(*lse.shape, step.dim, dtype=torch.float32)
    constants = constants_of(step, parts, launch)
    with torch.cuda.device_of(query):
        parts_kernel[(units, parts)](
            *(query, step.key_bkcd, step.value_bkcd, positions, results, lse),
            *(*query.stride()[:3], *step.key_bkcd.stride()[:3], *step.value_bkcd.stride()[:3]),
            *positions.stride(),
            step.scale * math.log2(math.e),
            BLOCK_M=max(16, triton.next_power_of_2(queries)),
            PRECISION="tf32x3",  # of fp32 inputs alone: three tensor core products, near fp32
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
            **constants,
        )
        if parts > 1:
            merge_kernel[(units * queries,)](
                *(results, lse, positions, out_bwhd, *positions.stride()),
                PARTS_BLOCK=triton.next_power_of_2(parts),
                **constants,
            )
    return out_bwhd


def launch_of(dtype: torch.dtype, dim: int) -> Launch:
    """For Hopper's shared memory, so that `PROGRAMS` fit; chosen by arithmetic, not by timings."""
    return Launch(64 if dtype.itemsize * dim <= 256 else 32, 4, 3)


def parts_of(units: int, bound: int, block_n: int, processors: int) -> int:
    """Parts of each row and KV head, so that all of them fill the multiprocessors once."""
    fill = PROGRAMS * processors // units
    return max(1, min(fill, -(-bound // block_n), MOST_PARTS))


def constants_of(step: Step, parts: int, launch: Launch) -> dict[str, Any]:
    """What both kernels are compiled for."""
    return {
        "WIDTH": step.width,
        "GROUP": step.group,
        "KV_HEADS": step.kv_heads,
        "DIM": step.dim,
        "PARTS": parts,
        "BLOCK_N": launch.block_n,
    }


@cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":  # in the interpreter
        return 8
    return torch.cuda.get_device_properties(device).multi_processor_count
