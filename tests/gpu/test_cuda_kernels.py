"""The kernels of csrc/ on the GPU: against fp64 beside plain bf16 torch; bit-equal on repeat."""

from collections.abc import Iterator

import pytest
import torch
from emu3_kernels import cuda
from torch.nn.functional import cross_entropy

pytestmark = pytest.mark.gpu

FP64_ROWS = 64  # rows compared at a time, so that fp64 fits beside everything else


@pytest.fixture(autouse=True)
def library() -> None:
    assert cuda.available(), "build it first: make csrc"


class Rows:
    """A workspace of padded fp16 rows on the GPU; what lies behind the columns is NaN."""

    def __init__(self, count: int, columns: int, z_loss: float = 0.0):
        stride = (columns + 127) // 128 * 128
        self.space = torch.full((count, stride), torch.nan, dtype=torch.float16, device="cuda")
        self.logits = self.space[:, :columns]
        for rows in self.logits.split(256):
            rows.copy_(4 * torch.randn(rows.shape, device="cuda"))
        self.labels = torch.randint(columns, (count,), device="cuda")
        self.labels[-1] = columns - 1
        self.weights = torch.rand(count, device="cuda") + 0.5
        self.z_loss = z_loss

    def run(self, one_read: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The workspace with gradients, and max, lse and target of each row."""
        space = self.space.clone()
        logits = space[:, : self.logits.shape[1]]
        found = torch.full((3, len(space)), torch.nan, device="cuda")
        if one_read:
            cuda.cross_entropy_rows(logits, self.labels, self.weights, *found, z_loss=self.z_loss)
            return space, found
        cuda.cross_entropy_statistics(logits, self.labels, *found)
        found[1] = found[0] + found[1].log()
        cuda.cross_entropy_gradient(logits, self.labels, self.weights, found[1], z_loss=self.z_loss)
        return space, found

    def expected(self, part: slice) -> tuple[torch.Tensor, ...]:
        """Gradient, max, lse and target of some rows in fp64."""
        logits = self.logits[part].double()
        labels, weights = self.labels[part, None], self.weights[part, None].double()
        lse = logits.logsumexp(1, keepdim=True)
        gradient = weights * (1 + 2 * self.z_loss * lse) * (logits - lse).exp()
        gradient.scatter_add_(1, labels, -weights)
        return gradient, logits.amax(1), lse[:, 0], logits.gather(1, labels)[:, 0]

    def torchs_gradient(self, part: slice) -> torch.Tensor:
        """Of plain torch whose gradient is bf16, without z-loss."""
        logits = self.logits[part].bfloat16().requires_grad_()
        nll = cross_entropy(logits, self.labels[part], reduction="none")
        (nll.float() * self.weights[part]).sum().backward()
        return logits.grad

    def parts(self) -> Iterator[slice]:
        for first in range(0, len(self.space), FP64_ROWS):
            yield slice(first, first + FP64_ROWS)


def relative_errors(rows: Rows, gradient: torch.Tensor) -> tuple[float, float]:
    """Of ours and of plain torch: the norm of the difference over the norm, all rows together."""
    sums = torch.zeros(3, dtype=torch.float64, device="cuda")
    for part in rows.parts():
        expected = rows.expected(part)[0]
        sums[0] += (gradient[part] - expected).square().sum()
        sums[1] += (rows.torchs_gradient(part) - expected).square().sum()
        sums[2] += expected.square().sum()
    ours, torchs, whole = sums.sqrt().tolist()
    return ours / whole, torchs / whole


def check(rows: Rows, one_read: bool) -> None:
    columns = rows.logits.shape[1]
    space, found = rows.run(one_read)

    ours, torchs = relative_errors(rows, space[:, :columns].view(torch.bfloat16))
    assert ours <= (2 * torchs if rows.z_loss == 0 else 2.0**-8), (ours, torchs)
    for part in rows.parts():
        _, largest, lse, target = rows.expected(part)
        assert torch.equal(found[0, part].double(), largest)
        assert torch.equal(found[2, part].double(), target)
        torch.testing.assert_close(found[1, part].double(), lse, rtol=1e-6, atol=4e-6)
    assert space[:, columns:].isnan().all()


def check_repeats(rows: Rows, one_read: bool) -> None:
    first, first_found = rows.run(one_read)
    for _ in range(3):
        space, found = rows.run(one_read)
        assert torch.equal(space.view(torch.int16), first.view(torch.int16))
        assert torch.equal(found, first_found)


@pytest.mark.parametrize("one_read", [True, False], ids=["one read", "two passes"])
@pytest.mark.parametrize("columns", [1000, 92_311, 184_622])
@pytest.mark.parametrize("count", [1, 17, 4097])
def test_gradients_are_as_good_as_torchs(count: int, columns: int, one_read: bool) -> None:
    check(Rows(count, columns), one_read)


@pytest.mark.parametrize("one_read", [True, False], ids=["one read", "two passes"])
def test_z_loss_and_every_size_of_cluster(one_read: bool) -> None:
    for columns in (1, 17, 1000, 30_001, 250_001):  # of 2 and 16 blocks
        check(Rows(17, columns, z_loss=1e-3), one_read)


@pytest.mark.parametrize("one_read", [True, False], ids=["one read", "two passes"])
def test_repeats_are_bit_equal(one_read: bool) -> None:
    check_repeats(Rows(2048, 184_622), one_read)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_of_attention(dtype: torch.dtype) -> None:
    tokens, heads, dim = 1001, 5, 128
    scores = 3 * torch.randn(heads, tokens, 12, device="cuda", dtype=torch.float64)
    values = torch.randn(heads, 12, dim, device="cuda", dtype=torch.float64)
    split = [(scores[..., part], values[:, part]) for part in (slice(5), slice(5, 12))]
    outs = [(s.softmax(-1) @ v).transpose(0, 1).contiguous() for s, v in split]
    lses = [s.logsumexp(-1).float() for s, _ in split]
    out, new_out = outs[0].float(), outs[1].to(dtype)
    lses[1][:, 3] = -torch.inf  # a query that the second part shows nothing
    new_out[3] = torch.nan

    cuda.merge_attention(out, lses[0], new_out, lses[1])

    whole = (scores.softmax(-1) @ values).transpose(0, 1)
    whole[3] = outs[0][3]
    eps = 2.0**-8 if dtype == torch.bfloat16 else 2e-6
    torch.testing.assert_close(out.double(), whole, rtol=eps, atol=eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accumulate_on_gpu(dtype: torch.dtype) -> None:
    for count in (1, 4099, 1 << 20):
        accumulator = torch.randn(count, device="cuda")
        gradient = torch.randn(count, device="cuda").to(dtype)
        expected = accumulator + gradient.float()

        cuda.accumulate(accumulator, gradient)

        assert torch.equal(accumulator, expected)


@pytest.mark.parametrize("shape", [(8, 128), (3,), (1,), (300, 2)])
def test_permute_on_gpu(shape: tuple[int, ...]) -> None:
    source = torch.randn(5000, *shape, device="cuda").bfloat16()
    index = torch.randperm(5000, device="cuda")[:3001]
    destination = torch.full((3001, *shape), torch.nan, dtype=torch.bfloat16, device="cuda")

    cuda.permute_tokens(source, index, destination)

    assert torch.equal(destination, source[index])
