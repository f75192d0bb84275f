"""The search for codes on a GPU, at Emu3's sizes."""

import pytest
import torch
from emu3_kernels.nearest_code import nearest_code

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("rows", [1, 1000, 8100])
@pytest.mark.parametrize("codes", [512, 32768])
def test_as_the_differences_in_fp64_say(rows, codes):
    torch.manual_seed(0)
    rows_nc, book_kc = torch.randn(rows, 4, device="cuda"), torch.randn(codes, 4, device="cuda")

    found = nearest_code(rows_nc, book_kc, "triton")

    exact = nearest_code(rows_nc, book_kc, "reference")
    distance = lambda chosen: (rows_nc - book_kc[chosen]).double().square().sum(1)
    assert (found != exact).double().mean() <= 1e-3  # near ties alone
    torch.testing.assert_close(distance(found), distance(exact), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_of_equal_codes_the_lowest(backend):
    torch.manual_seed(0)
    rows_nc, book_kc = torch.randn(500, 4, device="cuda"), torch.randn(1111, 4, device="cuda")

    codes = nearest_code(rows_nc, torch.cat((book_kc, book_kc)), backend)

    assert torch.equal(codes, nearest_code(rows_nc, book_kc, backend))
