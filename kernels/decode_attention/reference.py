"""Decode attention in plain torch: any device, any floating type, computed in fp32 or wider."""

import torch
from emu3_kernels.decode_attention.step import Step


def attend(step: Step) -> torch.Tensor:
    """See `decode_attention`."""
    wide = torch.promote_types(step.query_bwhd.dtype, torch.float32)
    query_bknd = step.grouped_query().to(wide)
    key_bkcd, value_bkcd = step.key_bkcd.to(wide), step.value_bkcd.to(wide)
    score_bknc = query_bknd @ key_bkcd.mT * step.scale
    score_bknc += step.positions.mask(slice(None), key_bkcd.shape[2], step.group, wide)
    return step.ungrouped(score_bknc.softmax(-1) @ value_bkcd).to(step.query_bwhd.dtype)
