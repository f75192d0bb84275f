"""Groups of interchangeable items by size, for packing by histogram."""

from bisect import bisect_left, insort
from collections.abc import Iterator

Group = tuple[int, int, int]
"""Things `first` up to `first + number`, all in one state: (first, number, state)."""


class SizedGroups:
    """Groups by size, taken out by best fit or largest first."""

    def __init__(self) -> None:
        self._sizes: list[int] = []  # rising
        self._groups: dict[int, list[Group]] = {}

    def put(self, size: int, group: Group) -> None:
        if group[1] == 0:
            return
        if size in self._groups:
            self._groups[size].append(group)
        else:
            self._groups[size] = [group]
            insort(self._sizes, size)

    def take_fitting(self, size: int) -> tuple[int, Group] | None:
        """A group of the smallest size that is `size` or more."""
        at = bisect_left(self._sizes, size)
        return self._take(at) if at < len(self._sizes) else None

    def take_largest(self) -> tuple[int, Group] | None:
        return self._take(-1) if self._sizes else None

    def _take(self, at: int) -> tuple[int, Group]:
        size = self._sizes[at]
        groups = self._groups[size]
        group = groups.pop()
        if not groups:
            del self._groups[size], self._sizes[at]
        return size, group

    def __iter__(self) -> Iterator[tuple[int, Group]]:
        return ((size, group) for size, groups in self._groups.items() for group in groups)
