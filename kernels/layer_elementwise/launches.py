"""Launch shapes and launches of the Triton kernels; chosen by arithmetic, not by timings."""

from dataclasses import dataclass

import torch
import triton
from emu3_kernels.layer_elementwise import triton_kernels as kernels

BLOCK, NUM_WARPS = 1024, 4  # 8 numbers a thread
PROGRAMS = 264  # of the norm's backward: two a multiprocessor of an H100, the same everywhere


@dataclass(frozen=True)
class Drop:
    """Dropout of one call.

    Attributes:
        p: chance that a number is dropped.
        seed_1: int64 on the device, drawn from torch's generator; None without dropout.
    """

    p: float
    seed_1: torch.Tensor | None

    @classmethod
    def draw(cls, p: float, device: torch.device) -> "Drop":
        if not 0 <= p < 1:
            raise ValueError(f"dropout is {p}, must be in [0, 1)")
        if not p:
            return cls(0.0, None)
        return cls(p, torch.empty(1, dtype=torch.int64, device=device).random_())

    @property
    def numbers(self) -> tuple[int, float]:
        """Hashes below the first are dropped; what is kept grows by the second."""
        return round(self.p * 2**32), 1 / (1 - self.p)


def add_norm(
    residual_rh: torch.Tensor,
    branch_rh: torch.Tensor | None,
    weight_h: torch.Tensor,
    eps: float,
    drop: Drop,
    normed_rh: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sum, its norm (in the tensor that is given for it, if any), and 1 / rms of each row."""
    rows, columns = residual_rh.shape
    total = residual_rh if branch_rh is None else torch.empty_like(residual_rh)
    normed = torch.empty_like(residual_rh) if normed_rh is None else normed_rh
    rstd_r = residual_rh.new_empty(rows, dtype=torch.float32)
    if rows:
        with torch.cuda.device_of(residual_rh):
            kernels.add_norm_kernel[(rows,)](
                residual_rh,
                residual_rh if branch_rh is None else branch_rh,
                weight_h,
                rstd_r if drop.seed_1 is None else drop.seed_1,
                *(total, normed, rstd_r, columns, eps, *drop.numbers),
                ADD=branch_rh is not None,
                DROPOUT=drop.seed_1 is not None,
                **_whole_row(columns),
            )
    return total, normed, rstd_r


def add_norm_backward(
    dnormed_rh: torch.Tensor,
    dsum_rh: torch.Tensor | None,
    total_rh: torch.Tensor,
    weight_h: torch.Tensor,
    rstd_r: torch.Tensor,
    drop: Drop,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of residual, branch and weight."""
    rows, columns = total_rh.shape
    dresidual = torch.empty_like(total_rh)
    dbranch = dresidual if drop.seed_1 is None else torch.empty_like(total_rh)
    programs = max(1, min(rows, PROGRAMS))
    shares = total_rh.new_empty(programs, columns, dtype=torch.float32)
    with torch.cuda.device_of(total_rh):
        kernels.add_norm_backward_kernel[(programs,)](
            dnormed_rh,
            dnormed_rh if dsum_rh is None else dsum_rh,
            *(total_rh, weight_h, rstd_r),
            rstd_r if drop.seed_1 is None else drop.seed_1,
            *(dresidual, dbranch, shares, rows, columns, *drop.numbers),
            HAS_DSUM=dsum_rh is not None,
            DROPOUT=drop.seed_1 is not None,
            **_whole_row(columns),
        )
    return dresidual, dbranch, shares.sum(0).to(weight_h.dtype)


def dropout(branch_rh: torch.Tensor, residual_rh: torch.Tensor | None, drop: Drop) -> torch.Tensor:
    """residual + dropout(branch), or dropout(branch) alone."""
    rows, columns = branch_rh.shape
    out = torch.empty_like(branch_rh)
    if out.numel():
        with torch.cuda.device_of(branch_rh):
            kernels.dropout_kernel[(rows, triton.cdiv(columns, BLOCK))](
                branch_rh,
                branch_rh if residual_rh is None else residual_rh,
                branch_rh if drop.seed_1 is None else drop.seed_1,
                *(out, columns, *drop.numbers),
                ADD=residual_rh is not None,
                DROPOUT=drop.seed_1 is not None,
                BLOCK=BLOCK,
                num_warps=NUM_WARPS,
            )
    return out


def rotate(
    mixed_sbc: torch.Tensor,
    rotary_2sb1d: torch.Tensor,
    query_bshd: torch.Tensor,
    key_bshd: torch.Tensor,
    value_bshd: torch.Tensor,
    *,
    backward: bool,
) -> None:
    """Fill query, key and value from the product, or, backward, the product from them."""
    length, rows, _ = mixed_sbc.shape
    groups, dim = key_bshd.shape[2:]
    queries = query_bshd.shape[2] // groups
    if not mixed_sbc.numel():
        return
    with torch.cuda.device_of(mixed_sbc):
        kernels.rotate_kernel[(length * rows, groups)](
            *(mixed_sbc, rotary_2sb1d, query_bshd, key_bshd, value_bshd, length, rows, groups),
            QUERIES=queries,
            DIM=dim,
            BACKWARD=backward,
            HEADS=triton.next_power_of_2(queries + 2),
            HALF=triton.next_power_of_2(dim // 2),
            num_warps=NUM_WARPS,
        )


def swiglu(gate_up_rc: torch.Tensor, out_rf: torch.Tensor | None = None) -> torch.Tensor:
    """silu(gate) * up, in the tensor that is given for it, if any."""
    rows, columns = gate_up_rc.shape[0], gate_up_rc.shape[1] // 2
    out = gate_up_rc.new_empty(rows, columns) if out_rf is None else out_rf
    if out.numel():
        with torch.cuda.device_of(gate_up_rc):
            kernels.swiglu_kernel[(rows, triton.cdiv(columns, BLOCK))](
                gate_up_rc, out, columns, BLOCK=BLOCK, num_warps=NUM_WARPS
            )
    return out


def swiglu_backward(dout_rf: torch.Tensor, gate_up_rc: torch.Tensor) -> torch.Tensor:
    """The gradient of gates and of what they scale."""
    rows, columns = dout_rf.shape
    dgate_up = torch.empty_like(gate_up_rc)
    if dout_rf.numel():
        with torch.cuda.device_of(dout_rf):
            kernels.swiglu_backward_kernel[(rows, triton.cdiv(columns, BLOCK))](
                dout_rf, gate_up_rc, dgate_up, columns, BLOCK=BLOCK, num_warps=NUM_WARPS
            )
    return dgate_up


def _whole_row(columns: int) -> dict[str, int]:
    """One program holds a row, with 8 to 16 numbers a thread."""
    block = triton.next_power_of_2(columns)
    return {"BLOCK": block, "num_warps": min(32, max(1, block // 512))}
