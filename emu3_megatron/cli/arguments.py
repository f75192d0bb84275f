"""Arguments that several commands share, and printing into a pipe."""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="a YAML file, or the name of a shipped recipe: see emu3 recipe"
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        show_default=False,
        help="changes a key of the recipe, by its dotted name: run.steps=60, "
        "data.sources.0.pack=my.pack",
    ),
]
RanksFile = Annotated[
    Path | None,
    typer.Option(help="emu3.tiktoken, Qwen's text vocabulary (default: the copy in dashscope)"),
]


def new_group(**settings: Any) -> typer.Typer:
    """A group of commands, whose help and errors are plain text."""
    return typer.Typer(
        rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False, **settings
    )


def parse_rate(text: str | float) -> float:
    """Seconds, or frames a second."""
    with suppress(ValueError):
        if 0.01 <= float(text) < math.inf:
            return float(text)
    raise typer.BadParameter(f"{text}: give a number of 0.01 or more")


def rate(help: str) -> Any:
    """An option of seconds, or frames a second."""
    return typer.Option(parser=parse_rate, metavar="NUMBER", help=help)


@contextmanager
def until_reader_leaves() -> Iterator[None]:
    """For commands that only print: `| head` ends them without a traceback."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.exit(1)
