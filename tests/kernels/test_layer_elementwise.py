"""A layer's elementwise work: Triton's kernels in the interpreter, and compiled for Hopper."""

from support import triton_interpreter

# isort: split
import pytest
import torch
from emu3_kernels.layer_elementwise import (
    add_norm,
    dropout_add,
    fill_norm,
    fill_swiglu,
    rotate_qkv,
    swiglu,
)
from support.hopper import in_a_process

pytest.importorskip("triton")

DEVICE = triton_interpreter.DEVICE
EPS = 1e-5
P = 0.25


def draw(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def rotary(s, b, dim, dtype=torch.float32):
    """Cosines and sines of angles that repeat in the second half."""
    angles = draw(s, b, 1, dim // 2, seed=9) * 3
    angles = torch.cat([angles, angles], dim=-1)
    return torch.stack([angles.cos(), angles.sin()]).to(dtype)


# Name: the function of its tensors, their shapes. Sizes are no multiples of anything.
CASES = {
    "norm": (
        lambda b, x, w: add_norm(x, None, w, EPS, backend=b),
        [(3, 5, 37), (37,)],
    ),
    "add and norm": (
        lambda b, x, y, w: add_norm(x, y, w, EPS, backend=b),
        [(270, 1, 70), (270, 1, 70), (70,)],
    ),
    "add": (lambda b, x, y: dropout_add(x, y, backend=b), [(3, 5, 37), (3, 5, 37)]),
    "swiglu": (lambda b, x: swiglu(x, backend=b), [(3, 5, 2 * 37)]),
    "swiglu in blocks": (lambda b, x: swiglu(x, backend=b), [(2, 1, 2 * 1030)]),
    "rotate": (
        lambda b, x: rotate_qkv(x, rotary(7, 2, 6).to(x.dtype), 3, backend=b),
        [(7, 2, 3 * 4 * 6)],
    ),
    "rotate, one query a key": (
        lambda b, x: rotate_qkv(x, rotary(5, 1, 16).to(x.dtype), 2, backend=b),
        [(5, 1, 2 * 3 * 16)],
    ),
}


def outputs_and_gradients(name, backend, dtype, wide):
    """All results of a case, from inputs that are rounded to one type and computed in another."""
    function, shapes = CASES[name]
    inputs = [draw(*shape, seed=i).to(dtype).to(wide) for i, shape in enumerate(shapes)]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    outputs = function(backend, *inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    heads = [draw(*out.shape, seed=50 + i).to(dtype).to(wide) for i, out in enumerate(outputs)]
    torch.autograd.backward(outputs, heads)
    return [tensor.detach() for tensor in (*outputs, *(given.grad for given in inputs))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_as_near_to_fp64_as_plain_torch(name, dtype):
    right = outputs_and_gradients(name, "reference", dtype, torch.float64)
    plain = outputs_and_gradients(name, "reference", dtype, dtype)
    ours = outputs_and_gradients(name, "triton", dtype, dtype)

    for number, (wide, theirs, found) in enumerate(zip(right, plain, ours, strict=True)):
        assert found.dtype == dtype
        error, allowed = ((t.double() - wide).norm() for t in (found, theirs))
        least = torch.finfo(dtype).eps * wide.norm() / 4  # plain may hit a sum by luck
        assert error <= max(1.5 * allowed, least), number


def with_dropout(function, *inputs):
    """Results and gradients of a call with dropout, and again with the same random state."""
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out = function(*leaves)
        out.backward(torch.ones_like(out))
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    return found


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_dropout_drops_its_share_and_the_gradient_knows_which(backend):
    ones = torch.ones(60, 1, 300, device=DEVICE)
    (out, dresidual, dbranch), again = with_dropout(
        lambda x, y: dropout_add(x, y, P, backend=backend), 5 * ones, ones
    )

    added = out - 5
    dropped = (added == 0).double()
    deviation = (P * (1 - P) / added.numel()) ** 0.5
    assert abs(dropped.mean().item() - P) < 4 * deviation
    torch.testing.assert_close(added, dbranch, rtol=0, atol=1e-6)
    torch.testing.assert_close(dbranch, torch.where(added == 0, 0, ones / (1 - P)))
    assert torch.equal(dresidual, ones)
    # by row and column, the share has the spread of independent draws
    for side in (0, 2):
        shares = dropped.mean(side).flatten()
        assert 0.7 < shares.std() / (P * (1 - P) / dropped.shape[side]) ** 0.5 < 1.3
    assert all(torch.equal(*pair) for pair in zip((out, dresidual, dbranch), again, strict=True))


def test_the_norm_drops_what_the_sum_drops_and_its_gradient_too():
    x, y, weight = draw(20, 1, 37), draw(20, 1, 37, seed=1), draw(37, seed=2)
    torch.manual_seed(3)
    added = dropout_add(x, y, P, backend="triton")
    kept = added != x

    def loss(x, y, weight):
        total, normed = add_norm(x, y, weight, EPS, P, backend="triton")
        return normed + 2 * total

    (out, *gradients), again = with_dropout(loss, x, y, weight)

    leaves = [tensor.double().requires_grad_() for tensor in (x, y, weight)]
    branch = leaves[1] * kept / (1 - P)
    total, normed = add_norm(leaves[0], branch, leaves[2], EPS, backend="reference")
    (normed + 2 * total).sum().backward()
    right = [normed + 2 * total, *(leaf.grad for leaf in leaves)]
    for found, same, wanted in zip((out, *gradients), again, right, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(found, same)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_what_is_computed_again_is_the_same_to_the_bit(backend):
    x, y = (draw(9, 1, 70, seed=i, dtype=torch.float16) for i in range(2))
    weight = draw(70, seed=2, dtype=torch.float16)
    total, normed = add_norm(x, y, weight, EPS, backend=backend)
    again = torch.empty_like(normed)
    fill_norm(again, total, weight, EPS, backend=backend)
    assert torch.equal(again, normed)

    activation = swiglu(x, backend=backend)
    again = torch.empty_like(activation)
    fill_swiglu(again, x, backend=backend)
    assert torch.equal(again, activation)


def test_only_a_norm_that_is_used_gets_a_gradient():
    x, y = (draw(4, 1, 8, seed=i).requires_grad_() for i in range(2))
    total, _ = add_norm(x, y, draw(8), EPS, backend="triton")
    total.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert torch.equal(y.grad, x.grad)


def test_what_does_not_fit():
    x = draw(2, 1, 8)
    with pytest.raises(ValueError, match="do not fit"):
        add_norm(x, draw(2, 1, 7), draw(8), EPS)
    with pytest.raises(ValueError, match=r"weight \[7\]"):
        add_norm(x, None, draw(7), EPS)
    with pytest.raises(ValueError, match="into gates"):
        swiglu(draw(2, 7))
    with pytest.raises(ValueError, match="into 3 groups"):
        rotate_qkv(draw(2, 1, 32), rotary(2, 1, 4), 3)
    with pytest.raises(ValueError, match="does not take torch"):
        dropout_add(x.double(), x.double(), backend="triton")


COMPILE = """
import json
from emu3_kernels.layer_elementwise import launches, triton_kernels as kernels
from support.hopper import compiled

half = ("residual_ptr", "branch_ptr", "weight_ptr", "sum_ptr", "normed_ptr", "dnormed_ptr",
        "dsum_ptr", "dresidual_ptr", "dbranch_ptr", "out_ptr", "mixed_ptr", "rotary_ptr",
        "query_ptr", "key_ptr", "value_ptr", "gate_up_ptr", "dout_ptr", "dgate_up_ptr")
types = dict.fromkeys(half, "*bf16") | {"rstd_ptr": "*fp32", "dweight_ptr": "*fp32",
    "seed_ptr": "*i64", "eps": "fp32", "scale": "fp32", "threshold": "i32"}
aligned = (*half, "rstd_ptr", "dweight_ptr", "columns")
row, part = launches._whole_row(4096), {"BLOCK": launches.BLOCK, "num_warps": launches.NUM_WARPS}

def compile(kernel, shape, **constants):
    warps = {"num_warps": shape["num_warps"]}
    constants |= {"BLOCK": shape["BLOCK"]} if "BLOCK" in shape else {}
    kinds = {k: v for k, v in types.items() if k in kernel.arg_names}
    return compiled(kernel, kinds, constants, aligned, **warps)

found = {}
for dropout in (False, True):
    found[f"add_norm {dropout}"] = compile(kernels.add_norm_kernel, row, ADD=True, DROPOUT=dropout)
    found[f"add_norm backward {dropout}"] = compile(
        kernels.add_norm_backward_kernel, row, HAS_DSUM=True, DROPOUT=dropout)
    found[f"dropout {dropout}"] = compile(kernels.dropout_kernel, part, ADD=True, DROPOUT=dropout)
for backward in (False, True):
    found[f"rotate {backward}"] = compile(kernels.rotate_kernel, {"num_warps": 4},
        QUERIES=4, DIM=128, BACKWARD=backward, HEADS=8, HALF=64)
found["swiglu"] = compile(kernels.swiglu_kernel, part)
found["swiglu backward"] = compile(kernels.swiglu_backward_kernel, part)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_kernels_compile_for_hopper_with_wide_loads_and_without_spills(tmp_path):
    for name, kernel in in_a_process(COMPILE, tmp_path).items():
        assert kernel["stack"] == 0, name
        # two programs of the norm's backward share a multiprocessor, eight of the others
        assert kernel["registers"] <= (128 if "backward" in name else 64), name
        assert "LDG.E.128" in kernel["code"] or "LDG.E.64" in kernel["code"], name
