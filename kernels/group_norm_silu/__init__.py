"""SiLU of a GroupNorm, in one pass over the input and one over the output; without gradients."""

import torch
from emu3_kernels.group_norm_silu.backends import BACKENDS, Backend, choose

__all__ = ["BACKENDS", "Backend", "group_norm_silu"]


@torch.no_grad()
def group_norm_silu(
    input_nchw: torch.Tensor,
    groups: int,
    weight_c: torch.Tensor,
    bias_c: torch.Tensor,
    eps: float,
    scale_nchw: torch.Tensor | None = None,
    shift_nchw: torch.Tensor | None = None,
    *,
    backend: Backend = "auto",
) -> torch.Tensor:
    """silu(group_norm(input) * scale + shift).

    Args:
        input_nchw: fp32, fp16 or bf16 [n, c, h, w]; it is computed in fp32.
        weight_c: of the norm, fp32 like the bias.
        scale_nchw: fp32 [n, c, h / r, w / r] for a whole r, one number for r x r places. Scale and
            shift are given both or not at all.
        backend: "reference" is plain torch; "triton" is ours for GPUs. "auto" takes what fits.

    Returns:
        fp32 [n, c, h, w].

    Raises:
        ValueError: shapes do not fit, or the backend cannot take them.
    """
    if input_nchw.ndim != 4 or input_nchw.shape[1] % groups:
        raise ValueError(f"input {[*input_nchw.shape]} does not divide into {groups} groups")
    if (scale_nchw is None) != (shift_nchw is None):
        raise ValueError("scale and shift are given both or not at all")
    if scale_nchw is not None and shift_nchw is not None:
        ratio = input_nchw.shape[2] // max(1, scale_nchw.shape[2])
        height, width = (ratio * size for size in scale_nchw.shape[2:])
        fits = (*scale_nchw.shape[:2], height, width) == input_nchw.shape
        if not fits or scale_nchw.shape != shift_nchw.shape:
            raise ValueError(
                f"input {[*input_nchw.shape]}, scale {[*scale_nchw.shape]} and shift "
                f"{[*shift_nchw.shape]} do not fit"
            )
    function = choose(backend, input_nchw)
    return function(input_nchw, groups, weight_c, bias_c, eps, scale_nchw, shift_nchw)
