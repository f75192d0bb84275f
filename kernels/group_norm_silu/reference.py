"""SiLU of a GroupNorm in plain torch."""

import torch
import torch.nn.functional as F


def normed(
    input_nchw: torch.Tensor,
    groups: int,
    weight_c: torch.Tensor,
    bias_c: torch.Tensor,
    eps: float,
    scale_nchw: torch.Tensor | None,
    shift_nchw: torch.Tensor | None,
) -> torch.Tensor:
    """See `group_norm_silu`."""
    wide = torch.promote_types(input_nchw.dtype, torch.float32)
    hidden_nchw = F.group_norm(input_nchw.to(wide), groups, weight_c, bias_c, eps)
    if scale_nchw is not None and shift_nchw is not None:
        ratio = input_nchw.shape[2] // scale_nchw.shape[2]
        large = lambda t: t.repeat_interleave(ratio, 2).repeat_interleave(ratio, 3)
        hidden_nchw = torch.addcmul(large(shift_nchw), hidden_nchw, large(scale_nchw))
    return F.silu(hidden_nchw)
