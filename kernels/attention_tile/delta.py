"""Computes sum(dout * out), which the backward of each tile needs, and an out that gives it."""

import torch


def attention_delta(dout_thd: torch.Tensor, out_thd: torch.Tensor) -> torch.Tensor:
    """sum_d(dout * out), what every tile's backward subtracts: [h, t], fp32 or wider.

    Args:
        dout_thd: gradient of the whole attention, [t, h, d].
        out_thd: its output, over all keys.
    """
    wide = torch.promote_types(out_thd.dtype, torch.float32)
    if out_thd.is_cuda and wide == torch.float32 and out_thd.numel():
        # Imported here, as everything of Triton: the other backends do not need it on a CPU.
        from emu3_kernels.attention_tile.triton_delta import delta

        return delta(dout_thd, out_thd)
    # An einsum would become a matrix product for each token and head, of one value each.
    return (dout_thd.to(wide) * out_thd).sum(-1).T.contiguous()


def stand_in_out(dout_thd: torch.Tensor, delta_ht: torch.Tensor) -> torch.Tensor:
    """The shortest vectors with sum_d(dout * out) = delta: [t, h, d], in delta's type.

    torch's backward kernels take out, but only compute delta from it. These vectors are no longer
    than the real out, so rounding them to bf16 loses no more.
    """
    unit_thd = dout_thd.to(delta_ht.dtype)
    # Squares of small gradients would underflow.
    largest_th1 = unit_thd.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(unit_thd.dtype).tiny)
    unit_thd = unit_thd / largest_th1
    delta_th1 = delta_ht.T.unsqueeze(-1) / largest_th1
    squares_th1 = unit_thd.square().sum(-1, keepdim=True)
    return unit_thd * torch.where(squares_th1 > 0, delta_th1 / squares_th1, 0.0)
