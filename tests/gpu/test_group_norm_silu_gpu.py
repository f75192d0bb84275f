"""SiLU after GroupNorm on a GPU, at the sizes of Emu3's tokenizer."""

import pytest
import torch
from emu3_kernels.group_norm_silu import group_norm_silu

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "side", "ratio"), [(256, 512, 8), (1024, 64, 1), (512, 90, 0)]
)
def test_as_plain_torch(channels, side, ratio, dtype):
    torch.manual_seed(0)
    x = (5 + torch.randn(2, channels, side, side, device="cuda")).to(dtype)
    weight, bias = torch.randn(2, channels, device="cuda")
    codes = torch.randn(2, 2, channels, side // max(1, ratio), side // max(1, ratio), device="cuda")
    steer = codes.unbind() if ratio else ()

    found = group_norm_silu(x, 32, weight, bias, 1e-6, *steer, backend="triton")

    expected = group_norm_silu(x, 32, weight, bias, 1e-6, *steer, backend="reference")
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
