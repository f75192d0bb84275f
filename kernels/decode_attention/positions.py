"""Positions of a step's queries, with what the layers of the step need to know about them."""

from functools import cached_property
from itertools import groupby

import torch


class Positions:
    """Made once a step and given to every layer: runs and masks are found once, when first used.

    Attributes:
        positions_bw: integers [rows, width], ascending in each row; they must not change.
    """

    def __init__(self, positions_bw: torch.Tensor):
        self.positions_bw = positions_bw
        self._masks: dict[tuple[object, ...], torch.Tensor] = {}

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """Of neighbouring rows with the same positions how many keys they see, and their number.

        The host waits for the device.
        """
        by_positions = groupby(self.positions_bw.tolist())
        return [(positions[-1] + 1, len(list(rows))) for positions, rows in by_positions]

    def mask(self, rows: slice, length: int, group: int, dtype: torch.dtype) -> torch.Tensor:
        """What the scores of some rows' first keys get added, 0 or -inf.

        Returns:
            [rows, 1, w * group or 1, length]: the queries that share keys side by side.
        """
        wanted = (rows.start, rows.stop, length, group, dtype)
        if wanted not in self._masks:
            self._masks[wanted] = self._mask(rows, length, group, dtype)
        return self._masks[wanted]

    def _mask(self, rows: slice, length: int, group: int, dtype: torch.dtype) -> torch.Tensor:
        positions_bw = self.positions_bw[rows]
        key_c = torch.arange(length, device=positions_bw.device)
        hidden_bwc = key_c > positions_bw[:, :, None]
        mask_bwc = torch.zeros_like(hidden_bwc, dtype=dtype).masked_fill_(hidden_bwc, -torch.inf)
        if positions_bw.shape[1] == 1:  # the same for all heads
            return mask_bwc[:, None]
        return mask_bwc[:, :, None].expand(-1, -1, group, -1).flatten(1, 2)[:, None]
