"""Groups of near duplicates: which of them stays, and which groups are held out."""

import numpy as np


def first_kept(count: int, pairs: np.ndarray) -> list[int | None]:
    """For each item, the first kept one before it that it is near, or None: then it is kept.

    What is near a dropped one only stays.

    Args:
        pairs: [n, 2] of items that are near each other, the lesser first, sorted.
    """
    originals: list[int | None] = [None] * count
    order = np.lexsort((pairs[:, 0], pairs[:, 1]))
    for first, second in pairs[order].tolist():
        if originals[second] is None and originals[first] is None:
            originals[second] = first
    return originals


def group_numbers(count: int, pairs: np.ndarray) -> np.ndarray:
    """The group of each item, int64 [count], by its first item.

    Items that are near are of one group, and so are those that others connect.
    """
    numbers = np.arange(count)
    if not len(pairs):
        return numbers
    first, second = pairs[:, 0], pairs[:, 1]
    while True:
        least = np.minimum(numbers[first], numbers[second])
        before = numbers.copy()
        np.minimum.at(numbers, numbers[first], least)
        np.minimum.at(numbers, numbers[second], least)
        numbers = numbers[numbers]
        if np.array_equal(before, numbers):
            return numbers


def held_out(contents: np.ndarray, groups: np.ndarray, share: float) -> np.ndarray:
    """Whether the group of each item is held out, bool: it is when any of its items is drawn.

    An item is drawn by the hash of its content alone. So items that are added to a folder take
    nothing out of what is held out; they add to it what they connect with a drawn item.

    Args:
        contents: hashes of the contents, uint64.
    """
    drawn = contents < np.uint64(min(int(share * 2**64), 2**64 - 1))
    of_group = np.zeros(len(groups), bool)
    np.logical_or.at(of_group, groups, drawn)
    return of_group[groups]
