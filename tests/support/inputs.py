"""Inputs of the decoder from plain tokens."""

import torch

from emu3_megatron.model import Inputs, SequenceLayout


def whole_rows(
    tokens_bs: torch.Tensor,
    boundaries: list[int] | None = None,
    labels_bs: torch.Tensor | None = None,
) -> Inputs:
    """Rows that one rank holds whole; every label weighs 1 and is of class 0.

    Args:
        boundaries: where documents begin in each row and where the last ends; one document without.
    """
    rows, length = tokens_bs.shape
    bounds = torch.tensor(boundaries or [0, length])
    positions_s = torch.arange(length) - bounds[:-1].repeat_interleave(bounds.diff())
    return Inputs(
        tokens_bs,
        positions_s.expand(rows, -1),
        SequenceLayout.of_documents([bounds] * rows),
        labels_bs,
        None if labels_bs is None else torch.ones(labels_bs.shape),
        None if labels_bs is None else torch.zeros_like(labels_bs),
    )
