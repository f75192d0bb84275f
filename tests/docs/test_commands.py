"""Every command that README, docs and examples show is one that exists.

Each is parsed, and its recipe loaded with the overrides beside it. `test_running_commands.py` runs
them.
"""

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.command_line import parse
from support.documented import ROOT, Source, commands_of, lay_out, sources

from emu3_megatron.cli import main
from emu3_megatron.cli.app import build_command

SOURCES = sources()


class Loaded(Exception):
    """A recipe was read with its overrides; what comes next is not for this test."""


@pytest.fixture
def stop_once_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from emu3_megatron.cli import prepare, train
    from emu3_megatron.cli.tokenizer import training

    def load(*arguments: Any) -> None:
        load_recipe(*arguments)
        raise Loaded

    load_recipe = train.load_recipe
    for module in (prepare, training, train):
        monkeypatch.setattr(module, "load_recipe", load)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.path)
def test_commands_parse(
    source: Source, stop_once_loaded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands, complaints = commands_of(source)
    assert not complaints
    lay_out(tmp_path, source)
    monkeypatch.chdir(tmp_path)
    for words in commands:
        check_words(words)


def check_words(words: list[str]) -> None:
    """Whether programs, files, flags, recipes and overrides exist."""
    program, *arguments = words
    if program == "python":
        script, *arguments = arguments
        assert (ROOT / script).is_file(), shlex.join(words)
        program = "torchrun" if script == "tools/torchrun.py" and arguments else program
    if program == "torchrun":
        check_emu3(behind_launcher(arguments))
    elif program == "make":
        command = ["make", "--dry-run", "--silent", *arguments]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    elif program == "emu3":
        check_emu3(arguments)


def behind_launcher(arguments: list[str]) -> list[str]:
    from torch.distributed.run import get_args_parser

    launched = get_args_parser().parse_args(arguments)
    assert (launched.module, launched.training_script) == (True, "emu3_megatron")
    return launched.training_script_args


def check_emu3(arguments: list[str]) -> None:
    parse(arguments)
    if "--report" in arguments:  # reads a prepared folder, and no recipe
        return
    if arguments[0] in ("prepare", "train") or arguments[:2] == ["tokenizer", "train"]:
        with pytest.raises(Loaded):
            main(arguments)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.path)
def test_commands_inside_sentences_exist(source: Source) -> None:
    for command in source.inline_commands():
        program, *arguments = shlex.split(command)
        if program == "emu3":
            check_beginning(command, arguments)
        elif "NAME" not in command:
            check_words([program, *arguments[:1]])


def check_beginning(command: str, arguments: list[str]) -> None:
    """Whether there are such commands and flags; what else a command needs may be left out."""
    known = build_command()
    while arguments and hasattr(known, "commands") and not arguments[0].startswith("-"):
        known = known.commands.get(arguments.pop(0))
        assert known, command
    flags = {flag for parameter in known.params for flag in parameter.opts}
    assert {word for word in arguments if word.startswith("--")} <= flags, command
