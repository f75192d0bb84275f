"""The ring's kernels of csrc/ against torch, on the emulated machine."""

import pytest
import torch

INF = torch.inf


def merge(emulator, out, lse, new_out, new_lse):
    half = int(new_out.dtype == torch.bfloat16)
    tokens, heads, dim = out.shape
    emulator("merge", out, lse, lse.stride(0), new_out, new_lse, half, tokens, heads, dim)


def attention(scores_hts, values_hsd):
    """out [t, h, d] and lse [h, t] in fp64."""
    out = scores_hts.double().softmax(-1) @ values_hsd.double()
    return out.transpose(0, 1).contiguous(), scores_hts.double().logsumexp(-1)


@pytest.mark.parametrize(("tokens", "heads", "dim"), [(1, 1, 4), (33, 3, 64), (70, 2, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_parts_is_attention_over_all_keys(emulator, tokens, heads, dim, dtype):
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(heads, tokens, 12, generator=generator)
    values = torch.randn(heads, 12, dim, generator=generator)
    out, lse = (part.float() for part in attention(scores[..., :5], values[:, :5]))
    new_out, new_lse = attention(scores[..., 5:], values[:, 5:])

    merge(emulator, out, lse, new_out.to(dtype), new_lse.float())

    whole_out, whole_lse = attention(scores, values)
    eps = 2.0**-8 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(lse.double(), whole_lse, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(out.double(), whole_out, rtol=eps, atol=eps)


def test_some_queries_of_a_longer_lse(emulator):
    whole_lse = torch.zeros(2, 50)
    out, new_out = torch.zeros(3, 2, 4), torch.ones(3, 2, 4)

    merge(emulator, out, whole_lse[:, 10:13], new_out, torch.zeros(2, 3))

    expected = torch.zeros(2, 50)
    expected[:, 10:13] = torch.tensor(2.0).log()
    torch.testing.assert_close(whole_lse, expected)
    torch.testing.assert_close(out, new_out / 2)


def test_queries_that_saw_nothing(emulator):
    # Of one head: both saw keys, the first part alone, the second alone, neither.
    lse = torch.tensor([[0.0, 0.0, -INF, -INF]])
    new_lse = torch.tensor([[0.0, -INF, 0.0, -INF]])
    nothing = torch.nan  # what was never written
    out = torch.tensor([1.0, 1.0, nothing, 7.0]).repeat_interleave(4).view(4, 1, 4)
    new_out = torch.tensor([3.0, nothing, 3.0, nothing]).repeat_interleave(4).view(4, 1, 4)

    merge(emulator, out, lse, new_out, new_lse)

    assert out[:, 0, 0].tolist() == [2.0, 1.0, 3.0, 7.0]
    torch.testing.assert_close(lse, torch.tensor([[0.6931472, 0.0, 0.0, -INF]]))


@pytest.mark.parametrize("count", [1, 3, 4, 4096, 4103])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accumulate(emulator, count, dtype):
    space = torch.randn(count + 4)
    accumulator, behind = space[:count], space[count:].clone()
    gradient = torch.randn(count).to(dtype)
    expected = accumulator + gradient.float()

    emulator("accumulate", accumulator, gradient, int(dtype == torch.bfloat16), count)

    assert torch.equal(accumulator, expected)
    assert torch.equal(space[count:], behind)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (8, 6), (21, 300)])
def test_permute(emulator, rows, width):
    source = torch.randn(30, width).bfloat16()
    index = torch.randperm(30)[:rows]
    destination = torch.full((rows, width), torch.nan, dtype=torch.bfloat16)

    emulator("permute", source, index, destination, 30, rows, 2 * width)

    assert torch.equal(destination, source[index])


@pytest.mark.parametrize("index", [-1, 3])
def test_permute_stops_at_a_row_that_is_not_there(emulator, index):
    source = torch.zeros(3, 8, dtype=torch.bfloat16)

    with pytest.raises(RuntimeError, match="stopped"):
        emulator("permute", source, torch.tensor([index]), source.clone(), 3, 1, 16)


@pytest.mark.parametrize(
    ("source", "destination", "row_bytes", "width"),
    [(0, 0, 2048, 16), (0, 8, 2048, 8), (4, 0, 2048, 4), (0, 0, 6, 2), (256, 512, 24, 8)],
)
def test_rows_are_copied_in_the_widest_words(emulator, source, destination, row_bytes, width):
    sizes = map(emulator.as_c, (source, destination, row_bytes))
    assert emulator.library.width(*sizes) == width
