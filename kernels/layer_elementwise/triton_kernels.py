"""The Triton kernels. All compute in fp32, read each number once and write each result once."""

import triton
import triton.language as tl


@triton.jit
def kept(seed_ptr, row, column_c, threshold):
    """Which numbers of a row dropout keeps: a hash of seed, row and column."""
    word = tl.load(seed_ptr)
    row = row.to(tl.uint32)
    salt = _mix(row * 0x9E3779B9 + word.to(tl.uint32))
    other = _mix(salt ^ (word >> 32).to(tl.uint32))
    word_c = column_c.to(tl.uint32) * 0x85EBCA6B + salt
    word_c = (word_c ^ (word_c >> 16)) * 0x7FEB352D + other
    word_c = (word_c ^ (word_c >> 15)) * 0x846CA68B
    return (word_c ^ (word_c >> 16)) >= threshold.to(tl.uint32)


@triton.jit
def _mix(word):
    """murmur3's finalizer on uint32."""
    word = (word ^ (word >> 16)) * 0x85EBCA6B
    word = (word ^ (word >> 13)) * 0xC2B2AE35
    return word ^ (word >> 16)


@triton.jit
def add_norm_kernel(
    residual_ptr,
    branch_ptr,  # not read unless ADD
    weight_ptr,
    seed_ptr,  # not read unless DROPOUT
    sum_ptr,  # not written unless ADD
    normed_ptr,
    rstd_ptr,  # fp32 [rows]
    columns,
    eps,
    threshold,
    scale,
    ADD: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: residual + dropout(branch), and the RMSNorm of the sum as it is stored."""
    row = tl.program_id(0)
    column_c = tl.arange(0, BLOCK)
    inside = column_c < columns
    place_c = row.to(tl.int64) * columns + column_c
    x = tl.load(residual_ptr + place_c, mask=inside, other=0.0)
    if ADD:
        y = tl.load(branch_ptr + place_c, mask=inside, other=0.0).to(tl.float32)
        if DROPOUT:
            y = tl.where(kept(seed_ptr, row, column_c, threshold), y * scale, 0.0)
        x = (x.to(tl.float32) + y).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + place_c, x, mask=inside)
    x = x.to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, 0) / columns + eps)
    tl.store(rstd_ptr + row, rstd)
    x = (x * rstd).to(normed_ptr.dtype.element_ty).to(tl.float32)
    weight = tl.load(weight_ptr + column_c, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed_ptr + place_c, (x * weight).to(normed_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def add_norm_backward_kernel(
    dnormed_ptr,
    dsum_ptr,  # gradient of the sum from elsewhere; not read unless HAS_DSUM
    sum_ptr,
    weight_ptr,
    rstd_ptr,
    seed_ptr,  # not read unless DROPOUT
    dresidual_ptr,
    dbranch_ptr,  # not written unless DROPOUT: it is dresidual otherwise
    dweight_ptr,  # fp32 [programs, columns], a share of each program
    rows,
    columns,
    threshold,
    scale,
    HAS_DSUM: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Every so many-th row, with the sum over them of the weight's gradient."""
    column_c = tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + column_c, mask=column_c < columns, other=0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK], tl.float32)
    first = tl.program_id(0)
    for start in range(0, rows, tl.num_programs(0)):
        row = first + start
        inside = column_c < tl.where(row < rows, columns, 0)
        place_c = row.to(tl.int64) * columns + column_c
        normal = tl.load(sum_ptr + place_c, mask=inside, other=0.0).to(tl.float32)
        dnormed = tl.load(dnormed_ptr + place_c, mask=inside, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + tl.minimum(row, rows - 1))
        normal *= rstd
        dweight += dnormed * normal
        dnormed *= weight
        dx = (dnormed - normal * (tl.sum(dnormed * normal, 0) / columns)) * rstd
        if HAS_DSUM:
            dx += tl.load(dsum_ptr + place_c, mask=inside, other=0.0).to(tl.float32)
        tl.store(dresidual_ptr + place_c, dx.to(dresidual_ptr.dtype.element_ty), mask=inside)
        if DROPOUT:
            dx = tl.where(kept(seed_ptr, row, column_c, threshold), dx * scale, 0.0)
            tl.store(dbranch_ptr + place_c, dx.to(dbranch_ptr.dtype.element_ty), mask=inside)
    place_c = first.to(tl.int64) * columns + column_c
    tl.store(dweight_ptr + place_c, dweight, mask=column_c < columns)


@triton.jit
def dropout_kernel(
    branch_ptr,
    residual_ptr,  # not read unless ADD
    seed_ptr,  # not read unless DROPOUT
    out_ptr,
    columns,
    threshold,
    scale,
    ADD: tl.constexpr,
    DROPOUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Some columns of a row: residual + dropout(branch), or dropout(branch) alone."""
    row = tl.program_id(0)
    column_c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column_c < columns
    place_c = row.to(tl.int64) * columns + column_c
    x = tl.load(branch_ptr + place_c, mask=inside, other=0.0).to(tl.float32)
    if DROPOUT:
        x = tl.where(kept(seed_ptr, row, column_c, threshold), x * scale, 0.0)
    if ADD:
        x += tl.load(residual_ptr + place_c, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place_c, x.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["length", "rows"])
def rotate_kernel(
    mixed_ptr,  # [s, b, groups, QUERIES + 2, DIM]
    rotary_ptr,  # [2, s, b, 1, DIM]
    query_ptr,  # [b, s, groups * QUERIES, DIM]
    key_ptr,  # [b, s, groups, DIM]
    value_ptr,
    length,
    rows,
    groups,
    QUERIES: tl.constexpr,
    DIM: tl.constexpr,
    BACKWARD: tl.constexpr,
    HEADS: tl.constexpr,  # QUERIES + 2 or more, a power of 2
    HALF: tl.constexpr,  # DIM / 2 or more, a power of 2
):
    """One group of one token: split and rotate; or, backward, rotate back and join."""
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = token % rows * length + token // rows  # of the token in [b, s]
    head_h, lane_d = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    inside = lane_d < DIM // 2
    angle = token * DIM + lane_d
    cosine = tl.load(rotary_ptr + angle, mask=inside, other=1.0).to(tl.float32)
    sines_ptr = rotary_ptr + rows.to(tl.int64) * length * DIM
    sine = tl.load(sines_ptr + angle, mask=inside, other=0.0).to(tl.float32)
    turned = head_h <= QUERIES  # the value is not
    cosine, sine = tl.where(turned, cosine, 1.0), tl.where(turned, sine, 0.0)

    mixed = mixed_ptr + ((token * groups + group) * (QUERIES + 2) + head_h) * DIM + lane_d
    query = query_ptr + ((place * groups + group) * QUERIES + head_h) * DIM + lane_d
    key = key_ptr + (place * groups + group) * DIM + lane_d + head_h * 0
    value = value_ptr + (place * groups + group) * DIM + lane_d + head_h * 0
    of_mixed, of_query = inside & (head_h < QUERIES + 2), inside & (head_h < QUERIES)
    of_key, of_value = inside & (head_h == QUERIES), inside & (head_h == QUERIES + 1)
    kind = mixed_ptr.dtype.element_ty
    if BACKWARD:
        first = tl.load(query, mask=of_query, other=0.0).to(tl.float32)
        first += tl.load(key, mask=of_key, other=0.0).to(tl.float32)
        first += tl.load(value, mask=of_value, other=0.0).to(tl.float32)
        second = tl.load(query + DIM // 2, mask=of_query, other=0.0).to(tl.float32)
        second += tl.load(key + DIM // 2, mask=of_key, other=0.0).to(tl.float32)
        second += tl.load(value + DIM // 2, mask=of_value, other=0.0).to(tl.float32)
        tl.store(mixed, (first * cosine + second * sine).to(kind), mask=of_mixed)
        tl.store(mixed + DIM // 2, (second * cosine - first * sine).to(kind), mask=of_mixed)
    else:
        first = tl.load(mixed, mask=of_mixed, other=0.0).to(tl.float32)
        second = tl.load(mixed + DIM // 2, mask=of_mixed, other=0.0).to(tl.float32)
        out = (first * cosine - second * sine).to(kind)
        other = (second * cosine + first * sine).to(kind)
        tl.store(query, out, mask=of_query)
        tl.store(query + DIM // 2, other, mask=of_query)
        tl.store(key, out, mask=of_key)
        tl.store(key + DIM // 2, other, mask=of_key)
        tl.store(value, out, mask=of_value)
        tl.store(value + DIM // 2, other, mask=of_value)


@triton.jit
def swiglu_kernel(gate_up_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    """Some columns of a row."""
    row = tl.program_id(0).to(tl.int64)
    column_c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column_c < columns
    gate_ptr = gate_up_ptr + row * 2 * columns + column_c
    gate = tl.load(gate_ptr, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * columns + column_c, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward_kernel(dout_ptr, gate_up_ptr, dgate_up_ptr, columns, BLOCK: tl.constexpr):
    """Some columns of a row."""
    row = tl.program_id(0).to(tl.int64)
    column_c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column_c < columns
    place_c = row * 2 * columns + column_c
    gate = tl.load(gate_up_ptr + place_c, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + columns + place_c, mask=inside, other=0.0).to(tl.float32)
    dout = tl.load(dout_ptr + row * columns + column_c, mask=inside, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    dgate = dout * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    dup = dout * gate * sigmoid
    kind = dgate_up_ptr.dtype.element_ty
    tl.store(dgate_up_ptr + place_c, dgate.to(kind), mask=inside)
    tl.store(dgate_up_ptr + columns + place_c, dup.to(kind), mask=inside)
