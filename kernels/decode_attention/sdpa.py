"""Decode attention by torch's attention function; the queries that share keys are its queries."""

import torch
from emu3_kernels.decode_attention.step import Step
from torch.nn.functional import scaled_dot_product_attention

# What a call costs besides reading keys, in keys of one KV head that a thread reads in that time;
# measured on a CPU in fp32 at d 64.
CALL, MASKED_CALL = 500, 600


def attend(step: Step) -> torch.Tensor:
    """See `decode_attention`.

    A CPU knows the positions: it reads each row's keys alone where that is less work, neighbouring
    rows of the same positions in one call. A single query sees all of them and needs no mask.
    """
    if step.query_bwhd.device.type != "cpu":
        return step.ungrouped(_call(step, step.grouped_query(), step.bound, masked=True))
    runs, masked = step.positions.runs, step.width > 1
    longest = max(length for length, _ in runs)
    if len(runs) == 1:
        return step.ungrouped(_call(step, step.grouped_query(), longest, masked))
    together = _cost(step, longest, step.rows, masked=True)
    if together <= sum(_cost(step, *run, masked) for run in runs):
        return step.ungrouped(_call(step, step.grouped_query(), longest, masked=True))
    return step.ungrouped(_by_runs(step, runs, masked))


def _cost(step: Step, length: int, rows: int, masked: bool) -> int:
    """Of one call, in keys that a thread reads: torch deals out rows and KV heads, never keys."""
    rounds = -(-rows * step.kv_heads // torch.get_num_threads())
    return rounds * length + (MASKED_CALL if masked else CALL)


def _by_runs(step: Step, runs: list[tuple[int, int]], masked: bool) -> torch.Tensor:
    query_bknd, outs, first = step.grouped_query(), [], 0
    for length, rows in runs:
        run = slice(first, first + rows)
        outs.append(_call(step, query_bknd[run], length, masked, run))
        first += rows
    return torch.cat(outs)


def _call(
    step: Step, query_bknd: torch.Tensor, length: int, masked: bool, rows: slice = slice(None)
) -> torch.Tensor:
    """Attention of some rows to their first keys."""
    mask = step.positions.mask(rows, length, step.group, query_bknd.dtype) if masked else None
    return scaled_dot_product_attention(
        query_bknd,
        step.key_bkcd[rows, :, :length],
        step.value_bkcd[rows, :, :length],
        attn_mask=mask,
        scale=step.scale,
    )
