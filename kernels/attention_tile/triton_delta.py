"""sum(dout * out) in Triton: one read of both, without fp32 copies of them."""

import torch
import triton
import triton.language as tl

BLOCK = 64  # tokens of a program


@triton.jit(do_not_specialize=["tokens"])
def delta_kernel(
    dout_ptr,
    out_ptr,
    delta_ptr,  # [heads, tokens], written
    do_t,
    do_h,
    out_t,
    out_h,
    tokens,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,  # a power of 2
    BLOCK: tl.constexpr,
):
    head = tl.program_id(0) % HEADS
    places = tl.program_id(0) // HEADS * BLOCK + tl.arange(0, BLOCK)
    rows = places.to(tl.int64)[:, None]
    dims = tl.arange(0, PADDED)[None, :]
    inside = (places < tokens)[:, None] & (dims < DIM)
    do_md = tl.load(dout_ptr + head * do_h + rows * do_t + dims, mask=inside, other=0.0)
    out_md = tl.load(out_ptr + head * out_h + rows * out_t + dims, mask=inside, other=0.0)
    delta_m = tl.sum(do_md.to(tl.float32) * out_md.to(tl.float32), 1)
    tl.store(delta_ptr + head.to(tl.int64) * tokens + places, delta_m, mask=places < tokens)


def delta(dout_thd: torch.Tensor, out_thd: torch.Tensor) -> torch.Tensor:
    """See `attention_delta`; for fp32 and narrower."""
    tokens, heads, dim = out_thd.shape
    dout_thd, out_thd = (t if t.stride(2) == 1 else t.contiguous() for t in (dout_thd, out_thd))
    delta_ht = torch.empty(heads, tokens, dtype=torch.float32, device=out_thd.device)
    strides = (*dout_thd.stride()[:2], *out_thd.stride()[:2])
    with torch.cuda.device_of(out_thd):
        delta_kernel[(triton.cdiv(tokens, BLOCK) * heads,)](
            *(dout_thd, out_thd, delta_ht, *strides, tokens),
            HEADS=heads,
            DIM=dim,
            PADDED=triton.next_power_of_2(dim),
            BLOCK=BLOCK,
        )
    return delta_ht
