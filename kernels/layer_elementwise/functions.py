"""The backend of our Triton kernels, as functions that autograd differentiates.

Each keeps for its backward pass what other parts of the layer keep anyway: the sum, the product.
"""

from typing import Any

import torch
from emu3_kernels.layer_elementwise import launches
from emu3_kernels.layer_elementwise.launches import Drop


def add_norm(
    residual: torch.Tensor,
    branch: torch.Tensor | None,
    weight_h: torch.Tensor,
    eps: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `emu3_kernels.layer_elementwise.add_norm`."""
    drop = Drop.draw(0.0 if branch is None else dropout, residual.device)
    return _AddNorm.apply(residual, branch, weight_h, eps, drop)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        residual: torch.Tensor,
        branch: torch.Tensor | None,
        weight_h: torch.Tensor,
        eps: float,
        drop: Drop,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        added = None if branch is None else _rows(branch)
        total, normed, rstd_r = launches.add_norm(_rows(residual), added, weight_h, eps, drop)
        # Without a branch the sum is the residual itself, and comes back as that very tensor: so
        # its gradient from elsewhere comes here too, and is added in the same pass.
        total = residual if branch is None else total.view_as(residual)
        ctx.save_for_backward(total, weight_h, rstd_r, drop.seed_1)
        ctx.p, ctx.has_branch = drop.p, branch is not None
        ctx.set_materialize_grads(False)
        return total, normed.view_as(residual)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, dsum: torch.Tensor | None, dnormed: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        total, weight_h, rstd_r, seed_1 = ctx.saved_tensors
        drop = Drop(ctx.p, seed_1)
        if dnormed is None:
            dbranch = dsum
            if dsum is not None and seed_1 is not None:
                dbranch = launches.dropout(_rows(dsum), None, drop).view_as(dsum)
            return dsum, dbranch if ctx.has_branch else None, None, None, None
        dresidual, added, dweight_h = launches.add_norm_backward(
            _rows(dnormed),
            None if dsum is None else _rows(dsum),
            *(_rows(total), weight_h, rstd_r, drop),
        )
        dbranch = added.view_as(total) if ctx.has_branch else None
        return dresidual.view_as(total), dbranch, dweight_h, None, None


def dropout_add(residual: torch.Tensor, branch: torch.Tensor, dropout: float) -> torch.Tensor:
    """See `emu3_kernels.layer_elementwise.dropout_add`."""
    return _DropoutAdd.apply(residual, branch, Drop.draw(dropout, residual.device))


class _DropoutAdd(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, residual: torch.Tensor, branch: torch.Tensor, drop: Drop
    ) -> torch.Tensor:
        ctx.save_for_backward(drop.seed_1)
        ctx.p = drop.p
        return launches.dropout(_rows(branch), _rows(residual), drop).view_as(residual)

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        (seed_1,) = ctx.saved_tensors
        if seed_1 is None:
            return dout, dout, None
        dbranch = launches.dropout(_rows(dout), None, Drop(ctx.p, seed_1))
        return dout, dbranch.view_as(dout), None


def rotate_qkv(
    mixed_sbc: torch.Tensor, rotary_2sb1d: torch.Tensor, groups: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `emu3_kernels.layer_elementwise.rotate_qkv`."""
    return _RotateQkv.apply(mixed_sbc, rotary_2sb1d, groups)


class _RotateQkv(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, mixed_sbc: torch.Tensor, rotary_2sb1d: torch.Tensor, groups: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        s, b, columns = mixed_sbc.shape
        dim = rotary_2sb1d.shape[-1]
        rotary_2sb1d = rotary_2sb1d.contiguous()
        ctx.save_for_backward(rotary_2sb1d)
        queries = columns // dim - 2 * groups
        query, key, value = (
            mixed_sbc.new_empty(b, s, heads, dim) for heads in (queries, groups, groups)
        )
        launches.rotate(mixed_sbc.contiguous(), rotary_2sb1d, query, key, value, backward=False)
        return query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)

    @staticmethod
    def backward(  # type: ignore[override]
        ctx: Any, dquery: torch.Tensor, dkey: torch.Tensor, dvalue: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        (rotary_2sb1d,) = ctx.saved_tensors
        s, b, heads, dim = dquery.shape
        dmixed_sbc = dquery.new_empty(s, b, (heads + 2 * dkey.shape[2]) * dim)
        gradients = (d.transpose(0, 1).contiguous() for d in (dquery, dkey, dvalue))
        launches.rotate(dmixed_sbc, rotary_2sb1d, *gradients, backward=True)
        return dmixed_sbc, None, None


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """See `emu3_kernels.layer_elementwise.swiglu`."""
    return _SwiGlu.apply(gate_up)


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(gate_up)
        return launches.swiglu(_rows(gate_up)).view(*gate_up.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, dout: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        (gate_up,) = ctx.saved_tensors
        return launches.swiglu_backward(_rows(dout), _rows(gate_up)).view_as(gate_up)


def fill_norm(out: torch.Tensor, total: torch.Tensor, weight_h: torch.Tensor, eps: float) -> None:
    """See `emu3_kernels.layer_elementwise.fill_norm`."""
    launches.add_norm(_rows(total), None, weight_h, eps, Drop(0.0, None), out.flatten(0, -2))


def fill_swiglu(out: torch.Tensor, gate_up: torch.Tensor) -> None:
    """See `emu3_kernels.layer_elementwise.fill_swiglu`."""
    launches.swiglu(_rows(gate_up), out.flatten(0, -2))


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().flatten(0, -2)
