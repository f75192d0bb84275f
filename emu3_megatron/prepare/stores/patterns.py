"""Braces in names, as WebDataset users write them: shards/{0000..0009}.tar."""

import itertools
import re

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WILD = re.compile(r"[*?\[]")


def expand(pattern: str) -> list[str]:
    """The names that a pattern stands for, in order; a pattern without braces is itself.

    {0000..0009} counts, with the zeros of its first number; {a,b} lists.
    """
    parts = _BRACES.split(pattern)  # every second one stood in braces
    choices = [_choices(part) if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    if not (counted := _RANGE.fullmatch(inside)):
        return inside.split(",") if "," in inside else [f"{{{inside}}}"]
    first, last = int(counted[1]), int(counted[2])
    step = 1 if first <= last else -1
    return [str(number).zfill(len(counted[1])) for number in range(first, last + step, step)]


def has_wildcards(name: str) -> bool:
    """Must a store be asked which files it stands for?"""
    return bool(_WILD.search(name))


def is_pattern(name: str) -> bool:
    return has_wildcards(name) or expand(name) != [name]


def fixed_folder(pattern: str) -> str:
    """The folder that all names of a pattern lie in: what precedes the first part of choices."""
    first = min((pattern.find(c) for c in "*?[{" if c in pattern), default=len(pattern))
    return pattern[:first].rpartition("/")[0]
