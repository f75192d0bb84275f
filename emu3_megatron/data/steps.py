"""Lists the documents of a step from its number, for `emu3 inspect batch`."""

from collections.abc import Iterator

from emu3_megatron.data.mixed import MixtureData


def documents_of_step(data: MixtureData, step: int) -> Iterator[str]:
    """A line for each sequence of a step, and one for each piece of a document in it.

    Args:
        step: counted from 1, as in logs, metrics and checkpoints.
    """
    for sequence in data.sequences_of_step(step):
        yield f"sequence {sequence.number:,}: row {sequence.index:,} of {sequence.source}"
        for piece, whole in zip(sequence.pieces, sequence.row, strict=True):
            begins = f" from token {piece.start:,}" if piece.start else ""
            dropped = len(whole.tokens) - len(piece.tokens)
            caption = f", its caption of {dropped:,} left out" if dropped else ""
            side = "" if piece.group is None else f", side {piece.side} of group {piece.group:,}"
            yield (
                f"  {piece.source} document {piece.document:,}: {len(piece.tokens):,} tokens"
                f"{begins}{caption}{side}"
            )
