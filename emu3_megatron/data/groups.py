"""Checks groups of documents, such as pairs: whole, side by side, and under one prompt.

A document's prompt is what of it is context.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from emu3_megatron.data.shards.index import TOKEN_BYTES
from emu3_megatron.data.shards.store import CONTEXT, TokenStore
from emu3_megatron.data.source import Piece
from emu3_megatron.errors import InputError

_AT_ONCE = 4096  # groups whose prompts are in memory together


def check_groups(pieces: Sequence[Piece], group: int) -> None:
    """See that a row is whole groups, one behind the other, each with one prompt.

    Raises:
        InputError: names the source and the documents.
    """
    for first in range(0, len(pieces), group):
        members = pieces[first : first + group]
        lead = members[0]
        together = {(piece.source, piece.group) for piece in members}
        if [piece.side for piece in members] != list(range(group)) or len(together) > 1:
            raise InputError(
                f"{lead.source}: document {lead.document} is not side by side with the others of "
                f"its group of {group}; a row must be whole groups"
            )
        prompts = [_prompt(piece) for piece in members]
        if not len(prompts[0]):
            raise InputError(_without_prompt(lead.source, lead.document))
        if not all(np.array_equal(prompts[0], other) for other in prompts[1:]):
            assert lead.group is not None
            raise InputError(_two_prompts(lead.source, lead.group, group))


def _prompt(piece: Piece) -> np.ndarray:
    return piece.tokens[:0] if piece.context is None else piece.tokens[piece.context]


def check_prompts(store: TokenStore, most_tokens: int | None = None, needed: bool = True) -> None:
    """See that the documents of each group of a shard share their prompt.

    Args:
        most_tokens: compared at most, of groups spread evenly over the shard; all without it. That
            the prompts of a group are equally long is always checked.
        needed: a group without a prompt is refused.

    Raises:
        InputError: names the shard and the documents.
    """
    assert store.group, "a shard of groups"
    sizes_kg = _prompt_sizes(store).reshape(-1, store.group)
    if needed and not sizes_kg.all():
        raise InputError(_without_prompt(store.name, int(np.argmin(sizes_kg.reshape(-1)))))
    unequal_k = (sizes_kg != sizes_kg[:, :1]).any(axis=1)
    if unequal_k.any():
        raise InputError(_two_prompts(store.name, int(np.argmax(unequal_k)), store.group))
    total = int(sizes_kg.sum())
    step = 1 if most_tokens is None else max(1, -(-total // most_tokens))
    for groups_k in _chunks(np.arange(0, len(sizes_kg), step)):
        differing = _first_differing(store, groups_k, sizes_kg[groups_k, 0])
        if differing is not None:
            raise InputError(_two_prompts(store.name, differing, store.group))


def _prompt_sizes(store: TokenStore) -> np.ndarray:
    """Context tokens of each document, int64 [documents]."""
    index = store.index
    context_n = np.where(index.modes == CONTEXT, index.lengths, 0)
    ends_n = np.concatenate([[0], np.cumsum(context_n, dtype=np.int64)])
    return np.diff(ends_n[index.first_sequences])


def _chunks(groups_k: np.ndarray) -> Iterator[np.ndarray]:
    return (groups_k[at : at + _AT_ONCE] for at in range(0, len(groups_k), _AT_ONCE))


def _first_differing(store: TokenStore, groups_k: np.ndarray, sizes_k: np.ndarray) -> int | None:
    """The first of these groups whose prompts, which are equally long, hold different tokens."""
    assert store.group
    lead, *others = (
        _prompt_tokens(store, groups_k * store.group + side) for side in range(store.group)
    )
    for other in others:
        if (unequal := lead != other).any():
            return int(np.repeat(groups_k, sizes_k)[np.argmax(unequal)])
    return None


def _prompt_tokens(store: TokenStore, documents_k: np.ndarray) -> np.ndarray:
    """The prompts of some documents, one behind the other."""
    index = store.index
    first_k = index.first_sequences[documents_k]
    counts_k = index.first_sequences[documents_k + 1] - first_k
    spans_n = _ranges(first_k, counts_k)
    spans_n = spans_n[index.modes[spans_n] == CONTEXT]
    return store.tokens_at(_ranges(index.pointers[spans_n] // TOKEN_BYTES, index.lengths[spans_n]))


def _ranges(begins_n: np.ndarray, sizes_n: np.ndarray) -> np.ndarray:
    """Indices from each beginning on, so many of each; int64."""
    ends_n = np.cumsum(sizes_n, dtype=np.int64)
    total = int(ends_n[-1]) if len(ends_n) else 0
    return np.arange(total) + np.repeat(begins_n - ends_n + sizes_n, sizes_n)


def _without_prompt(name: str, document: int) -> str:
    return (
        f"{name}: document {document} has no prompt, none of its spans is context; write what the "
        "documents of a group share as a context span"
    )


def _two_prompts(name: str, number: int, group: int) -> str:
    pair = "pair" if group == 2 else "group"
    first, last = number * group, (number + 1) * group - 1
    return (
        f"{name}: {pair} {number}, documents {first} to {last}, has two prompts; its documents "
        "must answer the same one: make the shard anew"
    )
