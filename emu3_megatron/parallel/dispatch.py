"""Which context parallel rank holds which tokens of a sequence."""

import torch


def zigzag(sequence_length: int, context_size: int) -> torch.Tensor:
    """Two chunks a rank, one from the front and its mirror: causal work comes out even.

    Args:
        sequence_length: a multiple of 2 x context_size.

    Returns:
        int64 [context_size, sequence_length / context_size]: indices into the sequence by rank.
    """
    if context_size == 1:
        return torch.arange(sequence_length)[None]
    chunks = torch.arange(sequence_length).view(2 * context_size, -1)
    front, back = chunks[:context_size], chunks[context_size:].flip(0)
    return torch.cat([front, back], dim=1)
