"""The search in plain torch: every difference, in fp64."""

import torch

_NUMBERS_AT_ONCE = 2**22


def search(rows_nc: torch.Tensor, book_kc: torch.Tensor) -> torch.Tensor:
    """See `nearest_code`."""
    rows_at_once = max(1, _NUMBERS_AT_ONCE // book_kc.numel())
    codes = [
        (rows_mc[:, None].double() - book_kc.double()).square().sum(2).argmin(1)
        for rows_mc in rows_nc.split(rows_at_once)
    ]
    return torch.cat(codes)
