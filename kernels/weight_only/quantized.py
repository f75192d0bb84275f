"""Weights in 8 bits: integers, or floats of type e4m3, with one scale for each output row."""

from dataclasses import dataclass

import torch

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """What `quantize` gives: the weight is about values * scales.

    Attributes:
        values_oi: int8 or float8_e4m3fn [o, i], contiguous.
        scales_o: fp32 [o], numbers that bf16 holds exactly.
    """

    values_oi: torch.Tensor
    scales_o: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of values and scales."""
        return self.values_oi.nbytes + self.scales_o.nbytes

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [o, i] that the values stand for."""
        return (self.values_oi.to(self.scales_o.dtype) * self.scales_o[:, None]).to(dtype)


def quantize(weight_oi: torch.Tensor, dtype: torch.dtype = torch.int8) -> QuantizedWeight:
    """Round a weight to 8 bits, symmetrically: each row's largest number becomes the largest value.

    Raises:
        ValueError: another type than int8 and float8_e4m3fn, or numbers that are not finite.
    """
    if dtype not in LARGEST:
        raise ValueError(f"no 8-bit weights of {dtype}; choose torch.int8 or torch.float8_e4m3fn")
    weight_oi = weight_oi.detach().float()
    most_o = weight_oi.abs().amax(1)
    if not most_o.isfinite().all():
        raise ValueError("the weight has numbers that are not finite")
    # In bf16, so that backends that multiply by scales in bf16 give what the others do.
    scales_o = (most_o / LARGEST[dtype]).bfloat16().float()
    scales_o = scales_o.where(scales_o > 0, 1.0)
    values_oi = (weight_oi / scales_o[:, None]).clamp_(-LARGEST[dtype], LARGEST[dtype])
    if dtype == torch.int8:
        values_oi = values_oi.round_()
    return QuantizedWeight(values_oi.to(dtype).contiguous(), scales_o)
