"""The nearest code of each row: exact, ties to the lowest index, whatever the size of the book."""

import pytest
import torch
from emu3_kernels.nearest_code import by_torch, nearest_code


def draw(rows, codes, channels=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    sample = lambda count: torch.randn(count, channels, generator=generator, dtype=dtype)
    return sample(rows), sample(codes)


@pytest.mark.parametrize("codes", [1, 63, 64, 65, 512, 1000])
@pytest.mark.parametrize("channels", [1, 4, 8])
def test_as_the_differences_in_fp64_say(codes, channels):
    rows_nc, book_kc = draw(300, codes, channels)

    expected = nearest_code(rows_nc, book_kc, "reference")

    assert torch.equal(nearest_code(rows_nc, book_kc, "torch"), expected)


def test_a_book_of_the_published_size():
    rows_nc, book_kc = draw(200, 32768)

    expected = nearest_code(rows_nc, book_kc, "reference")

    assert torch.equal(nearest_code(rows_nc, book_kc), expected)


def test_the_reference_finds_the_least_distance():
    rows_nc, book_kc = draw(50, 100, dtype=torch.float64)

    codes = nearest_code(rows_nc, book_kc, "reference")

    assert torch.equal(codes, torch.cdist(rows_nc, book_kc).argmin(1))


@pytest.mark.parametrize("codes", [37, 64, 1111])
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_of_equal_codes_the_lowest(backend, codes):
    rows_nc, book_kc = draw(500, codes)
    twice_kc = torch.cat((book_kc, book_kc, book_kc[:7]))

    assert torch.equal(
        nearest_code(rows_nc, twice_kc, backend), nearest_code(rows_nc, book_kc, backend)
    )


def test_pieces_change_nothing(monkeypatch):
    rows_nc, book_kc = draw(100, 512)
    codes = nearest_code(rows_nc, book_kc)

    monkeypatch.setattr(by_torch, "CACHED", 512 * 3)  # three rows at a time

    assert torch.equal(nearest_code(rows_nc, book_kc), codes)


def test_autocast_changes_nothing():
    rows_nc, book_kc = draw(1000, 512)
    codes = nearest_code(rows_nc, book_kc)

    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nearest_code(rows_nc, book_kc), codes)


def test_no_rows():
    assert nearest_code(torch.empty(0, 4), torch.zeros(3, 4)).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype):
    rows_nc, book_kc = draw(3, 5)

    with pytest.raises(ValueError, match="both must be fp32 or fp64"):
        nearest_code(rows_nc.to(dtype), book_kc.to(dtype))
    with pytest.raises(ValueError, match="both must be fp32 or fp64"):
        nearest_code(rows_nc, book_kc.to(dtype))


@pytest.mark.parametrize(("codes", "channels"), [(0, 4), (5, 3)])
def test_sizes_that_do_not_fit(codes, channels):
    with pytest.raises(ValueError, match=r"do not fit|without vectors"):
        nearest_code(torch.zeros(2, 4), torch.zeros(codes, channels))
