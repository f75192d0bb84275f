"""The step of Lloyd's algorithm that k-means repeats."""

import torch
from torch import Tensor


def move_to_means(book_kc: Tensor, codes_n: Tensor, rows_nc: Tensor, first: int = 0) -> Tensor:
    """Move codes, in place, to the mean of the rows that are theirs; one without rows stays.

    Args:
        codes_n: the code of each row.
        first: number of the first code that may move.

    Returns:
        How many rows each code has: [k].
    """
    counts_k = codes_n.bincount(minlength=len(book_kc))
    sums_kc = torch.zeros_like(book_kc).index_add_(0, codes_n, rows_nc)
    moves_k = counts_k > 0
    moves_k[:first] = False
    book_kc[moves_k] = sums_kc[moves_k] / counts_k[moves_k, None]
    return counts_k
