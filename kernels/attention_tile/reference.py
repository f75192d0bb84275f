"""Attention tiles in plain torch: any device, any floating type, computed in fp32 or wider."""

from collections.abc import Iterator

import torch
from emu3_kernels.attention_tile.dropout import Dropout
from emu3_kernels.attention_tile.implementation import Gradients, Implementation, Running
from emu3_kernels.attention_tile.ranges import KeyRanges
from emu3_kernels.attention_tile.tile import Tile
from emu3_kernels.passes import accumulate, merge

BLOCK = 512  # queries at a time: memory grows with the keys they see, not with queries x keys


def forward(tile: Tile, running: Running | None) -> Running:
    """See `attention_tile`."""
    q_thd, k_thd, v_thd = tile.inputs
    out_thd, lse_ht = running or tile.nothing_yet()
    for queries, keys in _blocks(tile.ranges):
        q_hqd = _by_head(q_thd[queries], out_thd.dtype)
        k_hkd, v_hkd = (_for_all_heads(t[keys], q_hqd) for t in (k_thd, v_thd))
        score_hqk = _scores(q_hqd, k_hkd, tile, queries, keys)
        lse_hq = score_hqk.logsumexp(-1)
        prob_hqk = _probabilities(score_hqk, lse_hq)
        if tile.dropout is not None:
            prob_hqk = prob_hqk * _factor(tile.dropout, prob_hqk, queries, keys)
        new_out_qhd = (prob_hqk @ v_hkd).transpose(0, 1)
        merge(out_thd[queries], lse_ht[:, queries], new_out_qhd, lse_hq)
    return out_thd, lse_ht


def backward(
    tile: Tile,
    dout_thd: torch.Tensor,
    delta_ht: torch.Tensor,
    lse_ht: torch.Tensor,
    gradients: Gradients,
) -> None:
    """See `attention_tile_backward`."""
    q_thd, k_thd, v_thd = tile.inputs
    dq_thd, dk_thd, dv_thd = gradients
    for queries, keys in _blocks(tile.ranges):
        q_hqd, do_hqd = (_by_head(t[queries], lse_ht.dtype) for t in (q_thd, dout_thd))
        k_hkd, v_hkd = (_for_all_heads(t[keys], q_hqd) for t in (k_thd, v_thd))
        score_hqk = _scores(q_hqd, k_hkd, tile, queries, keys)
        prob_hqk = _probabilities(score_hqk, lse_ht[:, queries])
        kept_hqk = prob_hqk
        dprob_hqk = do_hqd @ v_hkd.mT
        if tile.dropout is not None:
            factor_hqk = _factor(tile.dropout, prob_hqk, queries, keys)
            kept_hqk, dprob_hqk = prob_hqk * factor_hqk, dprob_hqk * factor_hqk
        dscore_hqk = prob_hqk * (dprob_hqk - delta_ht[:, queries, None]) * tile.scale
        accumulate(dq_thd[queries], (dscore_hqk @ k_hkd).transpose(0, 1))
        accumulate(dk_thd[keys], _over_group(dscore_hqk.mT @ q_hqd, k_thd.shape[1]))
        accumulate(dv_thd[keys], _over_group(kept_hqk.mT @ do_hqd, v_thd.shape[1]))


def _blocks(ranges: KeyRanges) -> Iterator[tuple[slice, slice]]:
    """Blocks of queries, and the keys that any query of the block sees."""
    for start in range(0, ranges.queries, BLOCK):
        end = min(start + BLOCK, ranges.queries)
        first, last = int(ranges.first_q[start]), int(ranges.last_q[end - 1])
        if first < last:
            yield slice(start, end), slice(first, last)


def _by_head(t_thd: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return t_thd.transpose(0, 1).to(dtype)


def _for_all_heads(t_kgd: torch.Tensor, q_hqd: torch.Tensor) -> torch.Tensor:
    """Each head of keys or values serves a group of neighbouring query heads."""
    group = q_hqd.shape[0] // t_kgd.shape[1]
    return _by_head(t_kgd, q_hqd.dtype).repeat_interleave(group, dim=0)


def _over_group(gradient_hkd: torch.Tensor, kv_heads: int) -> torch.Tensor:
    return gradient_hkd.unflatten(0, (kv_heads, -1)).sum(1).transpose(0, 1)


def _scores(
    q_hqd: torch.Tensor, k_hkd: torch.Tensor, tile: Tile, queries: slice, keys: slice
) -> torch.Tensor:
    key_k = torch.arange(keys.start, keys.stop, device=q_hqd.device)
    first_q1, last_q1 = tile.ranges.first_q[queries, None], tile.ranges.last_q[queries, None]
    hidden_qk = (key_k < first_q1) | (key_k >= last_q1)
    return (q_hqd @ k_hkd.mT * tile.scale).masked_fill_(hidden_qk, -torch.inf)


def _probabilities(score_hqk: torch.Tensor, lse_hq: torch.Tensor) -> torch.Tensor:
    """exp(score - lse); 0 in rows where nothing is visible, whose lse is -inf."""
    return (score_hqk - lse_hq.masked_fill(lse_hq == -torch.inf, 0.0)[:, :, None]).exp()


def _factor(dropout: Dropout, like: torch.Tensor, queries: slice, keys: slice) -> torch.Tensor:
    """What dropout multiplies probabilities by: 0 or 1 / (1 - p)."""
    return dropout.keep(like.shape[0], queries, keys).to(like.dtype) / (1 - dropout.p)


IMPLEMENTATION = Implementation(lambda tile: None, forward, backward)
