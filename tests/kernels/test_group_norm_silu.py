"""SiLU after GroupNorm: Triton's kernels in the interpreter, and compiled for Hopper."""

from support import triton_interpreter

# isort: split
import pytest
import torch
import torch.nn.functional as F
from emu3_kernels.group_norm_silu import group_norm_silu
from support.hopper import in_a_process

pytest.importorskip("triton")
from emu3_kernels.group_norm_silu import triton_norm

DEVICE = triton_interpreter.DEVICE


def draw(shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    sample = lambda *sizes: torch.randn(*sizes, generator=generator).to(DEVICE)
    return (5 + sample(*shape)).to(dtype), sample(shape[1]), sample(shape[1]), sample


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("shape", [(2, 8, 3, 5), (1, 12, 40, 33)])
def test_as_torchs_layers(backend, shape):
    x, weight, bias, _ = draw(shape)

    found = group_norm_silu(x, 4, weight, bias, 1e-6, backend=backend)

    expected = F.silu(F.group_norm(x.double(), 4, weight.double(), bias.double(), 1e-6))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("ratio", [1, 2, 8])
def test_scale_and_shift_of_the_code_at_each_place(backend, ratio):
    x, weight, bias, sample = draw((2, 8, 16, 24))
    scale, shift = (sample(2, 8, 16 // ratio, 24 // ratio) for _ in range(2))

    found = group_norm_silu(x, 4, weight, bias, 1e-6, scale, shift, backend=backend)

    large = lambda t: F.interpolate(t, size=(16, 24), mode="nearest")
    normed = F.group_norm(x, 4, weight, bias, 1e-6) * large(scale) + large(shift)
    torch.testing.assert_close(found, F.silu(normed), rtol=1e-4, atol=1e-5)


def test_half_precision_is_computed_in_fp32():
    x, weight, bias, _ = draw((1, 8, 7, 9), torch.float16)

    found = group_norm_silu(x, 2, weight, bias, 1e-6, backend="triton")

    expected = group_norm_silu(x.float(), 2, weight, bias, 1e-6, backend="reference")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_parts_have_four_blocks_at_least():
    block = triton_norm.BLOCK
    assert triton_norm.parts_of(30) == (1, block)
    assert triton_norm.parts_of(8 * block) == (2, 4 * block)
    assert triton_norm.parts_of(1024 * block) == (32, 32 * block)


def test_what_does_not_fit():
    x, weight, bias, sample = draw((2, 8, 16, 24))
    with pytest.raises(ValueError, match="into 3 groups"):
        group_norm_silu(x, 3, weight, bias, 1e-6)
    with pytest.raises(ValueError, match="both or not at all"):
        group_norm_silu(x, 4, weight, bias, 1e-6, sample(2, 8, 2, 3))
    with pytest.raises(ValueError, match="do not fit"):
        group_norm_silu(x, 4, weight, bias, 1e-6, sample(2, 8, 2, 4), sample(2, 8, 2, 4))


COMPILE = """
import json
from emu3_kernels.group_norm_silu import triton_kernels, triton_norm
from support.hopper import compiled

pointers = ("sums_ptr", "weight_ptr", "bias_ptr", "scale_ptr", "shift_ptr", "out_ptr")
types = dict.fromkeys(pointers, "*fp32") | {"eps": "fp32"}
sizes = {"PARTS": 32, "BLOCK": triton_norm.BLOCK}
aligned = (*pointers, "input_ptr", "places", "width", "size", "part_size")
warps = {"num_warps": triton_norm.NUM_WARPS}
found = {}
for kind in ("*fp32", "*bf16"):
    types["input_ptr"] = kind
    found[f"sums {kind}"] = compiled(triton_kernels.sums_kernel, types, sizes, aligned, **warps)
    for ratio in (0, 8):
        found[f"normed {kind} {ratio}"] = compiled(
            triton_kernels.normed_kernel, types, sizes | {"RATIO": ratio}, aligned, **warps
        )
print(json.dumps(found))
"""


@pytest.mark.slow
def test_kernels_compile_for_hopper_with_wide_loads_and_without_spills(tmp_path):
    for name, kernel in in_a_process(COMPILE, tmp_path).items():
        assert kernel["stack"] == 0, name
        assert kernel["registers"] <= 64, name  # eight programs share a multiprocessor
        assert "LDG.E.128" in kernel["code"] or "LDG.E.64" in kernel["code"], name
