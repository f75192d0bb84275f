"""Every launch of a part's Triton kernels, on tensors of the CPU, for whoever compiles them.

The tensors are small but have the types, strides and remainders that the kernels are specialized
for; what is computed with them is nothing.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import NamedTuple

import sweeps
import torch
from emu3_kernels import decode_attention, weight_only
from emu3_kernels.attention_tile import (
    Dropout,
    KeyRanges,
    attention_tile,
    attention_tile_alone,
    attention_tile_backward,
    attention_tile_backward_alone,
    triton_delta,
    triton_tile,
)
from emu3_kernels.decode_attention import triton_split
from emu3_kernels.group_norm_silu import triton_norm
from emu3_kernels.layer_elementwise import functions
from emu3_kernels.linear_cross_entropy import triton_rows
from emu3_kernels.nearest_code import triton_search
from emu3_kernels.weight_only import triton_linear

MULTIPROCESSORS = 132  # of an H100 and an H200
TOKENS, DIM = 256, 128


class Launch(NamedTuple):
    """What launches kernels.

    Attributes:
        only: the kernel that is meant; all of them without it.
    """

    name: str
    run: Callable[[], object]
    only: str | None = None


def launches_of(part: str) -> Iterator[Launch]:
    """The launches of a part of `make gpu`."""
    if part in ("tests", "attention", "step"):
        yield from _attention()
    if part in ("tests", "head", "step"):
        yield from _rows()
    if part in ("tests", "attention", "step"):
        yield from _decoding()
    if part in ("tests", "step"):
        yield from _layer()
        yield from _vision()
    if part == "attention":
        yield from _attention_sweep()
    if part == "head":
        yield from _rows_sweep()


def pretend_a_gpu() -> None:
    """Let the kernels' own code take tensors of the CPU, and launch as on a GPU."""
    able = replace(triton_tile.IMPLEMENTATION, unsupported_reason=lambda tile: None)
    triton_tile.IMPLEMENTATION = able
    triton_split._processors = triton_linear._processors = lambda device: MULTIPROCESSORS


def _attention() -> Iterator[Launch]:
    for heads in sweeps.HEADS:
        yield Launch(f"attention {heads}", partial(_attend, heads))
        # Other ranks' keys are merged into what is there.
        yield Launch(f"attention {heads}, merged", partial(_attend, heads, merged=True))


def _attention_sweep() -> Iterator[Launch]:
    for heads, (kernel, shapes) in product(sweeps.SWEPT, sweeps.ATTENTION.items()):
        for shape in shapes:
            run = partial(_swept, heads, kernel, shape)
            yield Launch(f"{kernel} {heads} {shape}", run, only=f"{kernel}_kernel")


def _swept(heads: sweeps.Heads, kernel: str, shape: tuple[int, int, int, int]) -> None:
    with sweeps.attention_launch(kernel, shape):
        _attend(heads, alone=False)


def _attend(heads: sweeps.Heads, merged: bool = False, alone: bool = True) -> None:
    draw = lambda count: torch.zeros(TOKENS, count, DIM, dtype=torch.bfloat16)
    q, k, v, dout = map(draw, (heads.heads, heads.kv_heads, heads.kv_heads, heads.heads))
    ranges = KeyRanges.of_segments([[0, TOKENS, 0, TOKENS, 1]], TOKENS, TOKENS)
    place = torch.arange(TOKENS)
    dropout = Dropout(heads.dropout, 1, place, place) if heads.dropout else None
    options = {"scale": DIM**-0.5, "dropout": dropout, "backend": "triton"}
    out, lse = attention_tile(q, k, v, ranges, **options)
    if merged:
        attention_tile(q, k, v, ranges, running=(out, lse), **options)
        return
    delta = triton_delta.delta(dout, out)
    dq, dk, dv = (torch.zeros(t.shape) for t in (q, k, v))
    attention_tile_backward(
        dout, q, k, v, delta, lse, ranges, dq_thd=dq, dk_thd=dk, dv_thd=dv, **options
    )
    if not alone:
        return
    out, lse = attention_tile_alone(q, k, v, ranges, **options)
    delta = triton_delta.delta(dout, out)
    attention_tile_backward_alone(dout, q, k, v, delta, lse, ranges, **options)


def _rows() -> Iterator[Launch]:
    # All columns, and the shares of four and eight ranks: those of the last rank are ragged.
    for columns in (sweeps.VOCABULARY, 46_208, 45_998, 23_168, 22_446):
        yield Launch(f"rows of {columns}", partial(_rows_of, columns))


def _rows_sweep() -> Iterator[Launch]:
    for shape in sweeps.ROWS:
        yield Launch(f"rows {shape}", partial(_swept_rows, *shape))


def _swept_rows(block: int, warps: int) -> None:
    with sweeps.rows_launch(block, warps):
        _rows_of(sweeps.VOCABULARY)


def _rows_of(columns: int) -> None:
    logits = torch.zeros(16, -(-columns // 128) * 128, dtype=torch.float16)[:, :columns]
    labels, weights = torch.zeros(16, dtype=torch.int64), torch.zeros(16)
    triton_rows.ROWS.statistics_with_entropy(logits, labels)
    found = triton_rows.ROWS.statistics(logits, labels)
    out = logits.view(torch.bfloat16)
    triton_rows.ROWS.gradient(logits, labels, weights, found, weights, 0.0, out)


def _decoding() -> Iterator[Launch]:
    for rows, keys in ((2, 8446), (16, 8446), (2, 131_328)):
        yield Launch(f"decoding {rows} x {keys}", partial(_decode, rows, keys))
    kinds = (torch.int8, torch.float8_e4m3fn)
    for kind, (outputs, inputs) in product(kinds, ((6144, 4096), (4096, 14336), (28672, 4096))):
        yield Launch(f"8 bits {outputs} x {inputs}", partial(_multiply, kind, outputs, inputs))


def _decode(rows: int, keys: int) -> None:
    query = torch.zeros(rows, 1, 32, DIM, dtype=torch.bfloat16)
    pool = torch.empty(2, rows, 8, keys, DIM, dtype=torch.bfloat16)
    positions = decode_attention.Positions(torch.zeros(rows, 1, dtype=torch.int64))
    triton_split.attend(decode_attention.Step(query, *pool, positions, DIM**-0.5))


def _multiply(kind: torch.dtype, outputs: int, inputs: int) -> None:
    values = torch.empty(outputs, inputs, dtype=kind)
    weight = weight_only.QuantizedWeight(values, torch.zeros(outputs))
    for rows in (2, 16):
        triton_linear.multiply(torch.zeros(rows, inputs, dtype=torch.bfloat16), weight)


def _layer() -> Iterator[Launch]:
    """The elementwise work of a layer of the 8B model, and of a rank of four."""
    for heads, groups, ffn in ((32, 8, 14_336), (8, 2, 3584)):
        yield Launch(f"layer {heads}/{groups}", partial(_elementwise, heads, groups, ffn))


def _elementwise(heads: int, groups: int, ffn: int, hidden: int = 4096) -> None:
    draw = lambda *shape: torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True)
    stream, branch, weight = draw(16, 1, hidden), draw(16, 1, hidden), draw(hidden)
    mixed, rotary = draw(16, 1, (heads + 2 * groups) * DIM), torch.zeros(2, 16, 1, 1, DIM)
    outs = [
        functions.dropout_add(stream, branch, 0.1),
        *functions.rotate_qkv(mixed, rotary, groups),
    ]
    for dropout, added in ((0.0, None), (0.0, branch), (0.1, branch)):
        outs += functions.add_norm(stream, added, weight, 1e-5, dropout)
    outs.append(functions.swiglu(draw(16, 1, 2 * ffn)))
    torch.autograd.backward(outs, [torch.zeros_like(out) for out in outs])


def _vision() -> Iterator[Launch]:
    yield Launch(
        "search", partial(triton_search.search, torch.zeros(4096, 4), torch.zeros(32768, 4))
    )
    ones = torch.ones(128)
    run = partial(triton_norm.normed, torch.zeros(1, 128, 64, 64), 32, ones, ones, 1e-6, None, None)
    yield Launch("norm", run)
