"""Strings that end a text."""

from typing import Annotated

from pydantic import AfterValidator

_MOST, _LONGEST = 16, 1000


def _check(value: str | list[str] | None) -> str | list[str] | None:
    strings = stops_of(value)
    if len(strings) > _MOST or not all(0 < len(string) <= _LONGEST for string in strings):
        raise ValueError(f"give at most {_MOST} strings of 1 to {_LONGEST} characters")
    return value


Stop = Annotated[str | list[str] | None, AfterValidator(_check)]


def stops_of(value: str | list[str] | None) -> list[str]:
    """One string, or several, or none, as a list."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else value
