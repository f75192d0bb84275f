"""The command line as a whole: help, version, where arguments may stand, and how it ends."""

import errno
import re
import shlex
import subprocess
import sys

import pytest
from support.command_line import parse

from emu3_megatron import __version__
from emu3_megatron.cli import app, main
from emu3_megatron.cli.app import COMMANDS
from emu3_megatron.errors import InputError, RunEnded


def printed(capsys, *arguments):
    """What a command that ends well prints."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_lists_the_commands_in_the_order_in_which_one_uses_them(capsys):
    text = printed(capsys, "--help")

    listed = re.findall(r"^  (\w+)  ", text.split("Commands:")[1], re.MULTILINE)
    assert listed == list(COMMANDS)
    assert listed.index("prepare") < listed.index("train") < listed.index("generate")
    assert "..." not in text.split("Commands:")[1], "a summary is cut; make it shorter"


def commands(command, above=()):
    """Every command that does something, as a list of words."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, [*above, name])
    if not hasattr(command, "commands"):
        yield above, command


@pytest.mark.parametrize(("words", "command"), commands(app.build_command()), ids=str)
def test_every_command_and_every_flag_explains_itself(words, command, capsys):
    assert printed(capsys, *words, "--help").startswith(f"Usage: emu3 {' '.join(words)} ")
    assert all(parameter.help for parameter in command.params)


def test_the_version(capsys):
    assert printed(capsys, "--version") == f"emu3-megatron {__version__}\n"


def test_help_imports_nothing_heavy():
    code = "import sys\nfrom emu3_megatron.cli import main\ntry: main(['--help'])\n"
    code += "except SystemExit: print(*sys.modules)"

    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8"
    )

    assert {"torch", "megatron", "triton", "tiktoken"}.isdisjoint(loaded.stdout.split())


# Where arguments may stand


@pytest.mark.parametrize(
    "arguments",
    [
        ["run.steps=60", "data.workers=0", "--accept"],
        ["--accept", "run.steps=60", "data.workers=0"],
        ["run.steps=60", "--accept", "data.workers=0"],
    ],
)
def test_overrides_stand_before_or_behind_flags(arguments):
    name, values = parse(["train", "recipe.yaml", *arguments])

    assert (name, values["recipe"], values["accept"]) == ("train", "recipe.yaml", True)
    assert list(values["overrides"]) == ["run.steps=60", "data.workers=0"]


@pytest.mark.parametrize("command", [["prepare", "dialogues"], ["prepare", "images"]])
def test_overrides_stand_behind_flags_of_other_commands(command):
    _, values = parse([*command, "recipe.yaml", "a=1", "--out", "folder", "b.0.c=2"])

    assert list(values["overrides"]) == ["a=1", "b.0.c=2"]


# How it ends


@pytest.fixture
def ends(monkeypatch, capsys):
    """A function that lets `emu3 status` raise; returns the exit code and what it printed."""

    def run(error, *flags):
        def fail(folder):
            raise error

        monkeypatch.setattr("emu3_megatron.runs.status.status", fail)
        with pytest.raises(SystemExit) as end:
            main([*flags, "status", "run"])
        return end.value.code, capsys.readouterr().err

    return run


def test_a_mistake_is_one_line_and_code_2(ends):
    assert ends(InputError("run: no run here")) == (2, "emu3: run: no run here\n")


def test_a_full_disk_is_named(ends):
    full = OSError(28, "No space left on device", "run/file")

    assert ends(full) == (2, "emu3: run/file: No space left on device\n")


@pytest.mark.parametrize("name", [None, "shard.bin"])
def test_the_limit_of_open_files_is_named(ends, monkeypatch, name):
    monkeypatch.setattr("resource.getrlimit", lambda kind: (1024, 4096))
    line = "emu3: more than 1,024 open files, the limit of this process; raise it: ulimit -n 4096\n"

    assert ends(OSError(errno.EMFILE, "Too many open files", name)) == (2, line)


def test_debug_shows_the_traceback(ends):
    with pytest.raises(InputError, match="no run here"):
        ends(InputError("no run here"), "--debug")


def test_a_run_that_ended_has_its_own_code(ends):
    assert ends(RunEnded("told to leave", 75)) == (75, "emu3: told to leave\n")


def test_other_ranks_are_silent_about_it(ends, monkeypatch):
    monkeypatch.setenv("RANK", "1")

    assert ends(RunEnded("told to leave", 75)) == (75, "")


def test_an_interruption_is_130(ends):
    assert ends(KeyboardInterrupt()) == (130, "")


def test_a_reader_that_leaves_ends_it_silently():
    code = "from emu3_megatron.cli import main; import emu3_megatron.runs.status as status; "
    code += "status.status = lambda folder: ['line'] * 100_000; main(['status', 'run'])"

    done = subprocess.run(
        f"{sys.executable} -c {shlex.quote(code)} | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )

    assert (done.stdout, done.stderr) == ("line\n", "")
