"""Leaves out the captions of some documents, so that the model also learns to draw without one.

Guidance needs that: it leads away from what the model draws without a caption. Emu3's training
script drops 5% of the captions (`null_prompt_prob`).
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from emu3_megatron.data.source import Piece
from emu3_megatron.vocabulary import Vocabulary


class NullPrompt:
    """Takes the captions out of a share of the captioned documents.

    Which documents is a function of the run's seed, the sequence's number in the run and the
    document's place in the sequence alone.

    Args:
        share: of the captioned documents, 0 to 1.
        seed: of the run.
    """

    def __init__(self, vocabulary: Vocabulary, share: float, seed: int):
        self.vocabulary = vocabulary
        self.share = share
        self.seed = seed

    def __call__(self, pieces: Sequence[Piece], sequence: int) -> list[Piece]:
        """The pieces of a sequence, some without their caption: shorter by its tokens."""
        return [self._apply(piece, sequence, place) for place, piece in enumerate(pieces)]

    def _apply(self, piece: Piece, sequence: int, place: int) -> Piece:
        if not self._is_chosen(sequence, place):
            return piece
        end = caption_end(piece, self.vocabulary)
        if end is None:
            return piece
        without = lambda values: np.concatenate([values[:1], values[end:]])
        context = None if piece.context is None else without(piece.context)
        return piece._replace(tokens=without(piece.tokens), context=context)

    def _is_chosen(self, sequence: int, place: int) -> bool:
        if not self.share:
            return False
        # A hash and no generator of random numbers: it is the same in every version of numpy.
        text = f"null prompt/{self.seed}/{sequence}/{place}".encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return int.from_bytes(digest, "little") < self.share * 2**64


def caption_end(piece: Piece, vocabulary: Vocabulary) -> int | None:
    """Where the caption of a captioned document ends: at the first token of its image or clip.

    Returns:
        None where there is no caption to take out: the piece begins inside its document, has no
        image or clip, begins with one, or its caption is context; or it is of a group, whose
        documents are compared under one prompt; or it has columns, which are of the whole document.
    """
    if piece.start or piece.group is not None or piece.columns or piece.tokens[0] != vocabulary.bos:
        return None
    starts = np.flatnonzero(piece.tokens == vocabulary.vision_start)
    if not len(starts) or starts[0] < 2:
        return None
    end = int(starts[0])
    is_context = piece.context is not None and piece.context[: end + 1].any()
    is_text = (piece.tokens[1:end] < vocabulary.num_text).all()
    return end if is_text and not is_context else None
