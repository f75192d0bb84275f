"""Builds `emu3` from its commands, and prints a user's mistake as one line.

Nothing heavy is imported before a command runs: Megatron's checkpoint writer starts processes that
import this module again.
"""

import errno
import io
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from emu3_megatron.cli import (
    check,
    convert,
    demo,
    evaluate,
    generate,
    inspect,
    pack,
    preferences,
    prepare,
    recipe,
    reference,
    serve,
    status,
    tokenizer,
    train,
)
from emu3_megatron.cli.arguments import new_group
from emu3_megatron.errors import INTERRUPTED, InputError, RunEnded

# In the order in which one uses them.
COMMANDS: dict[str, typer.Typer | Callable[..., None]] = {
    "demo": demo.demo,
    "recipe": recipe.recipe,
    "tokenizer": tokenizer.group,
    "prepare": prepare.group,
    "pack": pack.pack,
    "reference": reference.reference,
    "train": train.train,
    "status": status.status,
    "inspect": inspect.group,
    "generate": generate.group,
    "serve": serve.serve,
    "evaluate": evaluate.group,
    "preferences": preferences.group,
    "convert": convert.group,
    "check": check.check,
}

# Of click, which newer versions of typer carry inside themselves.
UsageError: Any = typer.BadParameter.__base__


# Errors that no file is named in, and that are nobody's mistake in the program.
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EMFILE)


@dataclass
class _Settings:
    debug: bool = False


class _InOrderOfUse(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"emu3-megatron {metadata.version('emu3-megatron')}")
        raise typer.Exit


def _root(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks of mistakes too")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="print the version and exit"
        ),
    ] = False,
) -> None:
    """Train native multimodal models of the Emu3 kind, from photos, clips and text to pictures.

    A model is made in this order: `tokenizer train` makes the vision tokenizer, `prepare` turns
    photos, clips and text into packs of tokens, `train` trains the decoder on them, `generate`
    draws. `convert import` starts from published weights instead. `demo` does all of it on ten
    photos, on a CPU, in minutes.

    `emu3 COMMAND --help` explains a command.
    """
    context.obj.debug = debug


def build_command() -> Any:
    """The whole command line as a click command."""
    app = new_group(cls=_InOrderOfUse, callback=_root)
    for name, command in COMMANDS.items():
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return get_command(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake ends in one line and exit code 2."""
    settings = _Settings()
    _print_any_text()
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments), settings)
    except UsageError as error:
        print(f"emu3: {_usage_line(error)}", file=sys.stderr)
        sys.exit(2)
    except (InputError, OSError) as error:
        if settings.debug or not _says_enough(error):
            raise
        _let_first_rank_speak()
        print(f"emu3: {_line_of(error)}", file=sys.stderr)
        sys.exit(2)
    except RunEnded as ended:  # on all ranks alike
        if os.environ.get("RANK", "0") == "0":
            print(f"emu3: {ended}", file=sys.stderr)
        sys.exit(ended.code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _print_any_text() -> None:
    """Let no locale refuse what is printed: a file or pipe gets UTF-8, a terminal its own."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = None if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


def _run(arguments: list[str], settings: _Settings) -> None:
    command = build_command()
    try:
        with command.make_context("emu3", arguments, obj=settings) as context:
            command.invoke(context)
    except typer.Exit as end:  # of --help and --version
        sys.exit(end.exit_code)


def _usage_line(error: Any) -> str:
    """One line for a wrong flag, as for every other mistake."""
    message = " ".join(error.format_message().split()).rstrip(".")
    command = error.ctx.command_path if error.ctx else "emu3"
    return f"{message}; see {command} --help"


def _says_enough(error: InputError | OSError) -> bool:
    """Whether one line on an error says what to do; otherwise a traceback helps more."""
    if isinstance(error, InputError) or error.filename is not None:
        return True
    return error.errno in _OF_THE_MACHINE


def _is_too_many_files(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EMFILE


def _line_of(error: InputError | OSError) -> str:
    if _is_too_many_files(error):
        limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        way_out = f"ulimit -n {most}" if limit < most else "LimitNOFILE, or docker run --ulimit"
        return f"more than {limit:,} open files, the limit of this process; raise it: {way_out}"
    if isinstance(error, OSError):  # a disk that is full, a folder that may not be written
        place = error.filename2 or error.filename
        return f"{place}: {error.strerror}" if place is not None else str(error.strerror)
    return str(error)


def _let_first_rank_speak() -> None:
    """Under torchrun all ranks find the same mistake, and the first to leave ends the others."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(10)
