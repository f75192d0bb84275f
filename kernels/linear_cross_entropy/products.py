"""The three matrix products of the head, with extents that cuBLAS has fast kernels for.

A vocabulary is rarely a multiple of anything, and a product whose extents are not multiples of 16
bytes takes kernels that are several times slower. So the last rows of the weight, fewer than
`ALIGNMENT`, are copied into a block that ends with rows of zeros. Their logits are zeros, and so is
the gradient of their logits, which no row pass touches. The weight's own rows of padding are never
read: whatever they hold, even NaN, cannot enter. A head without such rows is as fast.
"""

import torch

# Rows of the weight that a product takes at a time, by device. A CPU's products take any number.
ALIGNMENT = {"cuda": 128, "cpu": 1}


class Head:
    """A rank's rows of the head's weight, without padding, as the products take them.

    Logits of bf16 inputs are fp16. They are rounded to 11 bits where bf16 has 8: at a standard
    deviation of 6, bf16 logits give a hidden gradient four times as far from fp64's. Their gradient
    is bf16, as the inputs are: fp16 would lose what is small.

    Args:
        weight_vh: without rows of padding.
        dtype: of the products by which gradients are made.

    Attributes:
        columns: of logits; one for each row of the weight.
        width: of logits with the columns of padding that the products take.
        logits_dtype: of logits.
    """

    def __init__(self, weight_vh: torch.Tensor, dtype: torch.dtype):
        self.weight_vh = weight_vh.to(dtype)
        self.dtype = dtype
        self.logits_dtype = torch.float16 if dtype == torch.bfloat16 else dtype
        self.columns = len(weight_vh)
        alignment = ALIGNMENT[weight_vh.device.type]
        self._whole = self.columns // alignment * alignment  # rows that need no copy
        self.width = -(-self.columns // alignment) * alignment
        self._last_rh = _padded(self.weight_vh[self._whole :], self.width - self._whole, dtype)
        self._for_logits_wh = self.weight_vh
        if self.logits_dtype != dtype or self.width != self.columns:
            self._for_logits_wh = _padded(self.weight_vh, self.width, self.logits_dtype)

    def logits(self, hidden_ch: torch.Tensor, out_cw: torch.Tensor) -> None:
        """Logits of some tokens, and zeros in the columns of padding."""
        hidden_ch = hidden_ch.to(self.logits_dtype)
        torch.mm(hidden_ch, self._for_logits_wh.T, out=out_cw)

    def by_hidden(self, by_logits_cw: torch.Tensor, out_ch: torch.Tensor) -> None:
        """The gradient by hidden states."""
        whole = self._whole
        if whole:
            multiply(by_logits_cw[:, :whole], self.weight_vh[:whole], out=out_ch)
        if whole < self.width or not whole:
            multiply(by_logits_cw[:, whole:], self._last_rh, out=out_ch, add=whole > 0)

    def by_weight(
        self, by_logits_cw: torch.Tensor, hidden_ch: torch.Tensor, out_vh: torch.Tensor, add: bool
    ) -> None:
        """The gradient by the weight, or what it adds to it."""
        whole = self._whole
        if whole:
            multiply(by_logits_cw[:, :whole].T, hidden_ch, out=out_vh[:whole], add=add)
        if whole == self.width:
            return
        last_rh = out_vh.new_empty(self._last_rh.shape)
        multiply(by_logits_cw[:, whole:].T, hidden_ch, out=last_rh)
        last_rh = last_rh[: self.columns - whole]
        out_vh[whole:].copy_(out_vh[whole:] + last_rh if add else last_rh)


def _padded(weight_vh: torch.Tensor, rows: int, dtype: torch.dtype) -> torch.Tensor:
    """A copy with rows of zeros behind it."""
    padded_rh = weight_vh.new_empty(rows, weight_vh.shape[1], dtype=dtype)
    padded_rh[: len(weight_vh)] = weight_vh
    padded_rh[len(weight_vh) :].zero_()
    return padded_rh


def multiply(
    left: torch.Tensor, right: torch.Tensor, *, out: torch.Tensor, add: bool = False
) -> None:
    """out = left @ right, or out += left @ right, rounded to the type of `out` and no narrower."""
    if out.dtype == left.dtype:
        torch.addmm(out, left, right, beta=int(add), out=out)
    elif left.is_cuda:
        torch.addmm(out, left, right, out_dtype=out.dtype, beta=int(add), out=out)
    else:  # torch widens a product's result on GPUs only
        torch.addmm(out, left.to(out.dtype), right.to(out.dtype), beta=int(add), out=out)
