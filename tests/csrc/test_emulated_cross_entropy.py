"""The cross-entropy kernels of csrc/ against torch in fp64, on the emulated machine."""

import ctypes
from dataclasses import dataclass

import pytest
import torch
from emu3_kernels import cuda

BF16_EPS = 2.0**-8  # half a unit in the last place of bf16, relative


@dataclass
class Rows:
    """A workspace of padded rows, fp16; what lies behind the columns is NaN."""

    space: torch.Tensor
    columns: int
    labels: torch.Tensor
    weights: torch.Tensor

    @property
    def logits(self):
        return self.space[:, : self.columns]

    def expected(self, z_loss=0.0):
        """max, lse, target and the gradient in fp64, by torch's autograd."""
        logits = self.logits.double().requires_grad_()
        lse = logits.logsumexp(1)
        here = (self.labels >= 0) & (self.labels < self.columns)
        picked = logits.gather(1, self.labels.clamp(0, self.columns - 1)[:, None])[:, 0]
        target = torch.where(here, picked, 0.0)
        (self.weights.double() * (lse - target + z_loss * lse**2)).sum().backward()
        return logits.amax(1), lse, target, logits.grad

    def run(self, emulator, *, z_loss=0.0, cluster=0, clusters=1, seed=0):
        """The same by the one-read kernel, on a copy."""
        space, count = self.space.clone(), len(self.space)
        found = torch.full((3, count), torch.nan)
        emulator(
            "rows", space, space.stride(0), self.labels, self.weights, z_loss, *found, count,
            self.columns, cluster, clusters, seed=seed,
        )  # fmt: skip
        return Found.of(found, space, self.columns)


@dataclass
class Found:
    max: torch.Tensor
    lse: torch.Tensor
    target: torch.Tensor
    gradient: torch.Tensor
    behind: torch.Tensor

    @classmethod
    def of(cls, statistics, space, columns):
        """The gradient is bf16, in the memory of the logits."""
        gradient = space[:, :columns].view(torch.bfloat16)
        return cls(*statistics, gradient, space[:, columns:])

    def __eq__(self, other):
        return all(torch.equal(a, b) for a, b in zip(self.parts(), other.parts(), strict=True))

    def parts(self):
        return self.max, self.lse, self.target, self.gradient


def random_rows(count, columns, seed=0, spread=4.0):
    generator = torch.Generator().manual_seed(seed)
    stride = (columns + 127) // 128 * 128
    space = torch.full((count, stride), torch.nan, dtype=torch.float16)
    space[:, :columns] = spread * torch.randn(count, columns, generator=generator)
    labels = torch.randint(columns, (count,), generator=generator)
    labels[-1] = columns - 1  # in the last, ragged vector
    weights = torch.rand(count, generator=generator) + 0.5
    return Rows(space, columns, labels, weights)


def assert_close(found, rows, z_loss=0.0):
    largest, lse, target, gradient = rows.expected(z_loss)
    torch.testing.assert_close(found.max.double(), largest, rtol=0, atol=0)
    torch.testing.assert_close(found.target.double(), target, rtol=0, atol=0)
    torch.testing.assert_close(found.lse.double(), lse, rtol=1e-6, atol=2e-6)
    # Rounded to bf16, and fp32 arithmetic where terms cancel at the label.
    torch.testing.assert_close(found.gradient.double(), gradient, rtol=1.02 * BF16_EPS, atol=1e-6)
    assert found.behind.isnan().all()


@pytest.mark.parametrize(
    ("columns", "cluster"),
    [(1, 1), (8, 1), (17, 2), (17, 8), (1000, 1), (1000, 8), (4097, 1), (4097, 4), (4097, 16)],
)
def test_one_read_kernel_is_torchs_cross_entropy(emulator, columns, cluster):
    rows = random_rows(3, columns)

    assert_close(rows.run(emulator, cluster=cluster), rows)


@pytest.mark.parametrize("columns", [92_311, 184_622])
def test_one_read_kernel_at_emu3s_vocabulary(emulator, columns):
    rows = random_rows(3, columns)

    assert_close(rows.run(emulator, z_loss=1e-4), rows, z_loss=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 17])
def test_any_number_of_rows_goes_through_the_two_buffers(emulator, count):
    rows = random_rows(count, 500)

    assert_close(rows.run(emulator, cluster=2), rows)


def test_results_depend_neither_on_the_order_of_threads_nor_on_the_grid(emulator):
    rows = random_rows(7, 2000)

    first = rows.run(emulator, cluster=4)
    for seed in range(1, 6):
        assert rows.run(emulator, cluster=4, seed=seed, clusters=1 + seed % 3) == first


def test_labels_elsewhere_and_weights_of_zero(emulator):
    rows = random_rows(4, 1000)
    rows.labels[:3] = torch.tensor([-100, 1000, -1])
    rows.weights[3] = 0.0

    found = rows.run(emulator, cluster=2)

    assert_close(found, rows)
    assert found.target[:3].tolist() == [0, 0, 0]
    assert found.gradient[3].abs().max() == 0


def test_minus_infinity_and_thousands(emulator):
    rows = random_rows(2, 3000, spread=300.0)
    rows.labels = torch.tensor([2999, 2500])
    rows.logits[0, :2000] = -torch.inf  # whole blocks of nothing
    rows.logits[1, 1] = 2e4

    found = rows.run(emulator, cluster=4)

    largest, lse, _, gradient = rows.expected()
    torch.testing.assert_close(found.lse.double(), lse, rtol=1e-6, atol=0)
    assert found.gradient[0, :2000].abs().max() == 0
    # lse is rounded to fp32, and the softmax is off by as much, relatively.
    scale = BF16_EPS + 2.0**-23 * largest.max().item()
    torch.testing.assert_close(found.gradient.double(), gradient, rtol=scale, atol=scale)


@pytest.mark.parametrize("columns", [1, 17, 1000, 16_385, 23_078])
def test_two_passes_are_torchs_cross_entropy(emulator, columns):
    rows = random_rows(2, columns)
    largest, sumexp, target = torch.full((3, 2), torch.nan)
    logits, stride = rows.space.clone(), rows.space.stride(0)

    emulator("statistics", logits, stride, rows.labels, largest, sumexp, target, 2, columns)
    assert torch.equal(logits.view(torch.int16), rows.space.view(torch.int16))
    lse = largest + sumexp.log()
    emulator("gradient", logits, stride, rows.labels, rows.weights, lse, 1e-3, 2, columns)

    found = Found.of((largest, lse, target), logits, columns)
    assert_close(found, rows, z_loss=1e-3)


def test_shares_of_a_vocabulary_make_the_whole(emulator):
    rows = random_rows(3, 2048)
    share = 512
    parts = torch.full((4, 3, 3), torch.nan)
    for rank in range(4):
        mine = rows.space[:, rank * share : (rank + 1) * share]
        emulator("statistics", mine, 2048, rows.labels - rank * share, *parts[rank], 3, share)

    largest, sumexp, target = parts.unbind(1)
    whole = largest.amax(0)
    lse = whole + (sumexp * (largest - whole).exp()).sum(0).log()
    torch.testing.assert_close(lse.double(), rows.expected()[1], rtol=1e-6, atol=2e-6)
    assert torch.equal(target.sum(0).double(), rows.expected()[2])


def test_a_share_without_columns(emulator):
    largest, sumexp, target = torch.full((3, 1), torch.nan)
    logits = torch.zeros(1, 8, dtype=torch.float16)

    emulator("statistics", logits, 8, torch.tensor([3]), largest, sumexp, target, 1, 0)

    assert (largest.item(), sumexp.item(), target.item()) == (-torch.inf, 0.0, 0.0)


PLANS = {
    1: 2, 28_672: 2, 57_344: 2, 57_345: 4, 92_311: 4, 184_622: 8, 229_377: 16,
    cuda.MAX_COLUMNS: 16, cuda.MAX_COLUMNS + 1: 0,
}  # fmt: skip


def test_the_plan_uses_the_smallest_cluster_and_two_blocks_fit_a_multiprocessor(emulator):
    plan = emulator.library.plan
    slice_, shared = torch.zeros(2, 1, dtype=torch.int32)
    for columns, cluster in PLANS.items():
        pointers = (ctypes.c_void_p(part.data_ptr()) for part in (slice_, shared))
        assert plan(ctypes.c_int64(columns), *pointers) == cluster
        assert cluster == 0 or cluster * slice_.item() >= columns
        assert slice_.item() % 8 == 0
        # 228 KB a multiprocessor, 1 KB of it kept back for every block.
        assert 2 * (shared.item() + 1024) <= 228 * 1024


# What the emulated machine is for: each of these lines matters, and its loss is noticed.
NEEDED = {
    "the wait for a slice": "    wait_for_copy(&shared.loaded[stage], phase);\n",
    "the wait for messages": "    wait_for_messages(&shared.told[stage], phase);\n",
    "the barrier before a buffer is refilled": "    block_barrier();  // nobody reads this buffer",
    "the barrier among warps": "  block_barrier();\n  if (thread_index() >= 32) return {};",
    "the barrier before the first message": "  cluster_barrier();  // all blocks run",
}


@pytest.mark.parametrize("needed", NEEDED)
def test_the_emulated_machine_notices_a_missing(needed, changed_emulator):
    line = NEEDED[needed]
    kept = line.partition(";")[2]
    broken = changed_emulator("cross_entropy.cuh", line, kept)
    rows = random_rows(6, 3000)

    def right(seed):
        try:
            assert_close(rows.run(broken, cluster=4, seed=seed), rows)
        except (AssertionError, RuntimeError):
            return False
        return True

    assert not all(right(seed) for seed in range(5))
