"""A layer's elementwise kernels and weight gradients on a GPU, in bf16 at Emu3-8B's width."""

from collections.abc import Callable

import pytest
import torch
from emu3_kernels.layer_elementwise import add_norm, rotate_qkv, swiglu

from emu3_megatron.upstream import _add_weight_gradient

pytestmark = pytest.mark.gpu


def rotary(dtype: torch.dtype) -> torch.Tensor:
    angles = torch.arange(300, device="cuda")[:, None, None, None] * torch.rand(64, device="cuda")
    angles = torch.cat([angles, angles], dim=-1)
    return torch.stack([angles.cos(), angles.sin()]).bfloat16().to(dtype)


CASES: dict[str, tuple[Callable, list[tuple[int, ...]]]] = {
    "add_norm": (
        lambda backend, x, y, w: add_norm(x, y, w, 1e-5, backend=backend),
        [(300, 1, 4096), (300, 1, 4096), (4096,)],
    ),
    "rotate_qkv": (
        lambda backend, x: rotate_qkv(x, rotary(x.dtype), 8, backend=backend),
        [(300, 1, 6144)],
    ),
    "swiglu": (lambda backend, x: swiglu(x, backend=backend), [(300, 1, 2 * 14_336)]),
}


def found(name: str, backend: str, dtype: torch.dtype) -> list[torch.Tensor]:
    function, shapes = CASES[name]
    torch.manual_seed(0)
    inputs = [torch.randn(shape, device="cuda").bfloat16().to(dtype) for shape in shapes]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    outputs = function(backend, *inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.autograd.backward(
        outputs, [torch.randn(o.shape, device="cuda").bfloat16().to(dtype) for o in outputs]
    )
    return [tensor.detach() for tensor in (*outputs, *(given.grad for given in inputs))]


@pytest.mark.parametrize("name", CASES)
def test_as_near_to_fp64_as_plain_torch(name):
    right = found(name, "reference", torch.float64)
    plain = found(name, "reference", torch.bfloat16)
    for wide, theirs, ours in zip(right, plain, found(name, "auto", torch.bfloat16), strict=True):
        error, allowed = ((t.double() - wide).norm() for t in (ours, theirs))
        assert error <= 1.5 * allowed + 1e-3 * wide.norm()


def test_a_weights_gradient_is_added_in_fp32_by_the_product():
    torch.manual_seed(0)
    x, gradient = (torch.randn(300, n, device="cuda").bfloat16() for n in (512, 256))
    buffer = torch.randn(256, 512, device="cuda")
    wanted = buffer.double() + gradient.double().t() @ x.double()

    _add_weight_gradient(x, gradient, buffer)

    torch.testing.assert_close(buffer.double(), wanted, rtol=1e-5, atol=1e-4)
