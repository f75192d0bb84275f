"""The nearest vector of a codebook for each row, by L2 distance, without gradients."""

import torch
from emu3_kernels.nearest_code.backends import BACKENDS, Backend, choose

__all__ = ["BACKENDS", "Backend", "nearest_code"]


@torch.no_grad()
def nearest_code(
    rows_nc: torch.Tensor, book_kc: torch.Tensor, backend: Backend = "auto"
) -> torch.Tensor:
    """The index of the vector nearest to each row; of equal ones the lowest.

    All distances are computed, in the type of the inputs. Two vectors whose distances differ by
    less than that type's rounding may be taken for each other.

    Args:
        rows_nc: fp32 or fp64 [n, c].
        book_kc: [k, c], like the rows.
        backend: "reference" is plain torch in fp64; "torch" multiplies pieces of the rows by the
            book and leaves out what all vectors have in common, |row|²; "triton" sums differences
            on a GPU, in fp32, of at most 16 channels. "auto" takes what fits.

    Returns:
        int64 [n].

    Raises:
        ValueError: shapes or types do not fit, or the backend cannot take them.
    """
    if rows_nc.dtype != book_kc.dtype or rows_nc.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"rows are {rows_nc.dtype} and the book {book_kc.dtype}: both must be fp32 or fp64, "
            "as bf16 and fp16 find other codes"
        )
    if rows_nc.ndim != 2 or book_kc.ndim != 2 or rows_nc.shape[1] != book_kc.shape[1]:
        raise ValueError(
            f"rows {[*rows_nc.shape]} and book {[*book_kc.shape]} do not fit: "
            "needed are [n, c] and [k, c]"
        )
    if not len(book_kc):
        raise ValueError("a book without vectors")
    with torch.autocast(rows_nc.device.type, enabled=False):
        return choose(backend, rows_nc)(rows_nc, book_kc)
