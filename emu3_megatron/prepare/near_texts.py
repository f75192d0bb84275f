"""Near duplicates of texts by MinHash, and which texts are held out."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from emu3_megatron.errors import InputError
from emu3_megatron.prepare.groups import first_kept, group_numbers, held_out
from emu3_megatron.prepare.parts import (
    PartSummary,
    Sifted,
    Skipped,
    read_names,
    read_signatures,
)
from emu3_megatron.prepare.words import words_of

PERMUTATIONS = 128
SIGNED = "minhash/1"  # changes where signatures do
_WORDS = 5  # in a row, of which the likeness of texts is counted
_SEED = 1
_NEAR = 0.8  # where texts are held out and no threshold is given
_FOUND = 0.98  # of the pairs that are just near
_SMALL = 64  # texts of a bucket that are all compared with each other


def text_signatures(texts: Sequence[str]) -> np.ndarray:
    """MinHash signatures of the sequences of five words of texts, uint32 [texts, PERMUTATIONS].

    Case, punctuation and spaces do not count.

    Raises:
        InputError: rensa is not installed.
    """
    try:
        from rensa import RMinHash
    except ImportError:
        raise InputError(
            "near duplicates of texts need rensa: pip install 'emu3-megatron[prepare]'"
        ) from None
    if not texts:
        return np.empty((0, PERMUTATIONS), np.uint32)
    words = [words_of(text.casefold()) or [text] for text in texts]
    hashes = [_shingles(np.array(h, np.uint64)) for h in RMinHash.hash_token_sets(words)]
    offsets = np.cumsum([0, *map(len, hashes)], dtype=np.uint64)
    digests = RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(hashes), offsets, PERMUTATIONS, _SEED
    )
    return np.array(digests.to_rows(), np.uint32)


def _shingles(words: np.ndarray) -> np.ndarray:
    """A hash of each five words in a row; of fewer words one of all."""
    count = max(1, len(words) - _WORDS + 1)
    mixed = np.zeros(count, np.uint64)
    for place in range(min(_WORDS, len(words))):
        mixed = _mix(mixed, words[place : place + count])
    return mixed


def _mix(state: np.ndarray, value: np.ndarray) -> np.ndarray:
    mixed = (state ^ value) * np.uint64(0x9E3779B97F4A7C15)
    return mixed ^ (mixed >> np.uint64(29))


def sift_texts(
    threshold: float | None, holdout: float | None, work: Path, parts: Sequence[PartSummary]
) -> Sifted:
    """Leave out near duplicates, and set apart what is held out.

    Args:
        threshold: from which a later text is left out; None: only a split is made.
        holdout: share of groups of near duplicates that are held out; None: none.
        work: file for the signatures while they are compared, 512 bytes a text.
    """
    places = np.concatenate([np.empty((0, 2), int), *(_places(n, p) for n, p in enumerate(parts))])
    pairs = _near_pairs(parts, work, len(places), threshold or _NEAR)
    held = np.zeros(len(places), bool)
    if holdout is not None:
        contents = np.concatenate([np.empty(0, np.uint64), *map(_contents, parts)])
        held = held_out(contents, group_numbers(len(places), pairs), holdout)
    originals = first_kept(len(places), pairs if threshold else pairs[:0])
    kept = [part.kept.copy() for part in parts]
    apart = [np.zeros(len(part.kept), bool) for part in parts]
    for number, ((part, row), first) in enumerate(zip(places.tolist(), originals, strict=True)):
        kept[part][row] = first is None and not held[number]
        apart[part][row] = first is None and held[number]
    return Sifted(
        trained=[replace(part, kept=mask) for part, mask in zip(parts, kept, strict=True)],
        held_out=[replace(part, kept=mask) for part, mask in zip(parts, apart, strict=True)],
        near=_named(parts, places, originals),
    )


def _places(number: int, part: PartSummary) -> np.ndarray:
    """Part and row of each text that is no copy of another."""
    rows = np.flatnonzero(part.kept)
    return np.stack([np.full(len(rows), number), rows], axis=1)


def _contents(part: PartSummary) -> np.ndarray:
    hashes = np.ascontiguousarray(part.hashes[part.kept][:, :8])
    return hashes.view(">u8").reshape(-1).astype(np.uint64)


def _named(
    parts: Sequence[PartSummary], places: np.ndarray, originals: Sequence[int | None]
) -> list[Skipped]:
    """Each text that was left out, and of which it is a near copy."""
    found = [(number, first) for number, first in enumerate(originals) if first is not None]
    wanted = {int(places[number][0]) for pair in found for number in pair}
    names = {number: read_names(parts[number].path) for number in sorted(wanted)}

    def name(number: int) -> str:
        part, row = places[number].tolist()
        return names[part][row]

    return [(name(number), f"near duplicate: of {name(first)}") for number, first in found]


def _near_pairs(
    parts: Sequence[PartSummary], work: Path, count: int, threshold: float
) -> np.ndarray:
    if count < 2:
        return np.empty((0, 2), np.int64)
    work.parent.mkdir(parents=True, exist_ok=True)
    with work.open("wb") as file:
        for part in parts:
            file.write(read_signatures(part.path)[part.kept].tobytes())
    signatures = np.memmap(work, np.uint32, "r", shape=(count, PERMUTATIONS))
    try:
        return near_pairs_of_texts(signatures, threshold)
    finally:
        work.unlink()


def near_pairs_of_texts(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """Pairs [n, 2] of texts that share `threshold` of their signatures, the lesser first.

    Only those are compared that agree in one of several bands of their signatures.
    """
    rows = _band_rows(threshold)
    pairs = [np.empty((0, 2), np.int64)]
    for first in range(0, PERMUTATIONS - rows + 1, rows):
        for members in _buckets(signatures[:, first : first + rows]):
            pairs += _near_in_bucket(signatures, members, threshold)
    return np.unique(np.concatenate(pairs), axis=0)


def _band_rows(threshold: float) -> int:
    """The longest band with which pairs at the threshold are found."""
    for rows in range(PERMUTATIONS, 1, -1):
        if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= _FOUND:
            return rows
    return 1


def _buckets(band: np.ndarray) -> Iterator[np.ndarray]:
    """Texts that agree in a band, in order."""
    keys = np.zeros(len(band), np.uint64)
    for column in band.T:
        keys = _mix(keys, column.astype(np.uint64))
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    edges = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
    for number in np.flatnonzero(np.diff(edges) > 1):
        yield order[edges[number] : edges[number + 1]]


def _near_in_bucket(
    signatures: np.ndarray, members: np.ndarray, threshold: float
) -> Iterator[np.ndarray]:
    """Pairs of a bucket. In a large one, what is near a text is not compared with further ones."""
    is_small = len(members) <= _SMALL
    while len(members) > 1:
        first, others = members[0], members[1:]
        shared = np.concatenate(
            [
                (signatures[some] == signatures[first]).mean(1)
                for some in np.array_split(others, -(-len(others) // 4096))
            ]
        )
        near = shared >= threshold
        yield np.stack([np.full(near.sum(), first), others[near]], axis=1)
        members = others if is_small else others[~near]
