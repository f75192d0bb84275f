"""The binding refuses what the kernels cannot take; nothing here reaches a device."""

from types import SimpleNamespace

import pytest
import torch
from emu3_kernels import cuda


def rows_of(columns: int, stride: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.zeros(2, stride, dtype=dtype)[:, :columns]


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (rows_of(8, 8, torch.bfloat16), "torch.float16 is needed"),
        (rows_of(9, 9), "multiples of 16 bytes"),
        (rows_of(9, 24)[:, 1:], "multiples of 16 bytes"),
        (torch.zeros(16, 2, dtype=torch.float16).T, "multiples of 16 bytes"),
        (torch.zeros(25, dtype=torch.float16).as_strided((2, 9), (16, 1)), "next multiple of 8"),
        (rows_of(8, 8), "on one CUDA device"),
    ],
)
def test_logits_that_are_refused(logits: torch.Tensor, message: str) -> None:
    count = len(logits)
    labels = torch.zeros(count, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        cuda.cross_entropy_statistics(logits, labels, *torch.zeros(3, count))


def test_one_row_may_have_any_stride() -> None:
    logits = torch.zeros(1, 16, dtype=torch.float16)[:, :9].as_strided((1, 9), (3, 1))
    with pytest.raises(ValueError, match="on one CUDA device"):
        cuda.cross_entropy_statistics(logits, torch.tensor([0]), *torch.zeros(3, 1))


def test_a_row_that_no_cluster_holds_is_refused() -> None:
    columns = cuda.MAX_COLUMNS + 1
    logits = torch.zeros(1, columns + 7, dtype=torch.float16)[:, :columns]
    with pytest.raises(ValueError, match="a cluster holds 458752 at most"):
        cuda.cross_entropy_rows(logits, torch.tensor([0]), *torch.zeros(4, 1))


def test_other_tensors_that_are_refused() -> None:
    out, lse = torch.zeros(3, 2, 6), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="a multiple of 4 is needed"):
        cuda.merge_attention(out, lse, out, lse)
    with pytest.raises(ValueError, match=r"new_lse_ht is torch\.float32 \[3, 2\]"):
        cuda.merge_attention(out, lse, out, lse.T.contiguous())
    with pytest.raises(ValueError, match=r"accumulator is torch\.bfloat16"):
        cuda.accumulate(torch.zeros(4).bfloat16(), torch.zeros(4))
    with pytest.raises(ValueError, match="gradient must start at a multiple of 16 bytes"):
        cuda.accumulate(torch.zeros(4), torch.zeros(5)[1:])
    with pytest.raises(ValueError, match=r"index_t is torch\.int32"):
        cuda.permute_tokens(out, torch.tensor([0], dtype=torch.int32), out[:1])


def test_without_a_gpu_nothing_is_available() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert not cuda.available()


def test_the_disk_is_asked_once_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(cuda, "LIBRARY", SimpleNamespace(exists=lambda: asked.append(1) or True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 97)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))

    assert [cuda.available() for _ in range(3)] == [True] * 3
    assert len(asked) == 1
