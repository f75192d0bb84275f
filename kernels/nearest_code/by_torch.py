"""The search by products of pieces that stay in a CPU's cache.

What is compared is |code|² - 2 row·code: a distance less |row|², which is the same for all codes.
Rows end in a 1 and codes in |code|², so one product of matrices gives it. torch's `argmin` is slow,
as it keeps an index beside each number; so the least number of every block of codes is found first,
and `argmin` sees the one block that holds the least of all.
"""

import torch

BLOCK = 64  # codes
CACHED = 2**19  # numbers compared at once on a CPU: 2 MiB of fp32
AT_ONCE = 2**27  # elsewhere: 512 MiB


def search(rows_nc: torch.Tensor, book_kc: torch.Tensor) -> torch.Tensor:
    """See `nearest_code`."""
    book_dk = _extended(book_kc)
    rows_nd = torch.cat((rows_nc, torch.ones_like(rows_nc[:, :1])), 1)
    at_once = CACHED if rows_nc.device.type == "cpu" else AT_ONCE
    rows_at_once = max(1, at_once // book_dk.shape[1])
    codes = [_least(rows_md @ book_dk) for rows_md in rows_nd.split(rows_at_once)]
    return torch.cat(codes)


def _extended(book_kc: torch.Tensor) -> torch.Tensor:
    """-2 x codes and |code|², [c + 1, k]; the last block is filled with codes infinitely far."""
    squares_k1 = book_kc.square().sum(1, keepdim=True)
    book_kd = torch.cat((-2 * book_kc, squares_k1), 1)
    filled_kd = book_kd.new_zeros(-(-len(book_kd) // BLOCK) * BLOCK, book_kd.shape[1])
    filled_kd[:, -1] = torch.inf
    filled_kd[: len(book_kd)] = book_kd
    return filled_kd.T.contiguous()


def _least(compared_mk: torch.Tensor) -> torch.Tensor:
    """The column of each row's least number, the first of equal ones."""
    blocks_mbk = compared_mk.unflatten(1, (-1, BLOCK))
    block_m = blocks_mbk.amin(2).argmin(1)
    chosen_mk = blocks_mbk[torch.arange(len(block_m), device=block_m.device), block_m]
    return block_m * BLOCK + chosen_mk.argmin(1)
