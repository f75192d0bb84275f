"""What results over different keys have in common: their log-sum-exp puts them together."""

import torch


def merge(
    out_thd: torch.Tensor,
    lse_ht: torch.Tensor,
    new_out_thd: torch.Tensor,
    new_lse_ht: torch.Tensor,
) -> None:
    """Merge attention over further keys into out and lse, in place.

    out = (e^lse out + e^new_lse new_out) / (e^lse + e^new_lse); lse is -inf where nothing was
    visible yet, and out 0.

    Args:
        out_thd: [t, h, d], fp32 or wider.
        lse_ht: [h, t], natural log, fp32 or wider.
        new_out_thd: [t, h, d], any floating type.
        new_lse_ht: [h, t].
    """
    # Both -inf gives nan: nothing is visible, and out stays as it is.
    share_ht = torch.sigmoid(new_lse_ht - lse_ht).nan_to_num_(0.0)
    out_thd.lerp_(new_out_thd.to(out_thd.dtype), share_ht.T.unsqueeze(-1).to(out_thd.dtype))
    torch.logaddexp(lse_ht, new_lse_ht.to(lse_ht.dtype), out=lse_ht)


def nothing_yet(q_thd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """out and lse before the first tile."""
    wide = torch.promote_types(q_thd.dtype, torch.float32)
    tokens, heads, _ = q_thd.shape
    lse_ht = torch.full((heads, tokens), -torch.inf, dtype=wide, device=q_thd.device)
    return torch.zeros(q_thd.shape, dtype=wide, device=q_thd.device), lse_ht


def attention_delta(dout_thd: torch.Tensor, out_thd: torch.Tensor) -> torch.Tensor:
    """sum_d(dout * out), what every tile's backward subtracts: [h, t], fp32 or wider.

    Args:
        dout_thd: gradient of the whole attention, [t, h, d].
        out_thd: its output, over all keys.
    """
    wide = torch.promote_types(out_thd.dtype, torch.float32)
    return torch.einsum("thd,thd->ht", dout_thd.to(wide), out_thd.to(wide))


def stand_in_out(dout_thd: torch.Tensor, delta_ht: torch.Tensor) -> torch.Tensor:
    """The shortest out with sum_d(dout * out) = delta, [t, h, d] like delta.

    torch's backward kernels want out, and only to compute delta. Being no longer than the real
    out, it loses no more when it is rounded to bf16.
    """
    unit_thd = dout_thd.to(delta_ht.dtype)
    # Squares of small gradients would underflow.
    largest_th1 = unit_thd.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(unit_thd.dtype).tiny)
    unit_thd = unit_thd / largest_th1
    delta_th1 = delta_ht.T.unsqueeze(-1) / largest_th1
    squares_th1 = unit_thd.square().sum(-1, keepdim=True)
    return unit_thd * torch.where(squares_th1 > 0, delta_th1 / squares_th1, 0.0)
