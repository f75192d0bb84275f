"""The commands that README, docs and examples show.

Bash runs the blocks and the scripts, as it would for a user, but every program that it finds there
only writes down its arguments. So quoting, variables and loops mean what they mean to a shell.
"""

import functools
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PROGRAMS = ("emu3", "torchrun", "python", "make", "sleep")
TOOLS = ("bash", "dirname", "head", "ls")  # what the scripts take from the system
# Words that stand for something of the reader's, and arguments of scripts that need some.
PLACEHOLDERS = {"RECIPE": "stage1-tiny-cpu", "OUT": "data", "FOLDER": "runs/tokenizer/tokenizer"}
ARGUMENTS = {"examples/laptop/run.sh": ["demo/photos"]}

_WRITE_DOWN = r"""#!/bin/bash
printf '%s\0' "${0##*/}" "$@" $'\x1e' >> "$RECORD"
"""
# Slurm, as far as its batch scripts know it: the script itself, the task itself.
_SLURM = {
    "sbatch": 'while [ ! -f "$1" ]; do shift; done; exec bash "$@"',
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"',
    "scontrol": "echo node0",
}
_ENVIRONMENT = {
    "EMU3": str(ROOT),
    "HEAD": "node0",
    "SLURM_JOB_ID": "1",
    "SLURM_JOB_NODELIST": "node0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@dataclass(frozen=True)
class Source:
    """A document or a script, by its path in the repository."""

    path: str

    @property
    def is_script(self) -> bool:
        return self.path.endswith(".sh")

    @property
    def text(self) -> str:
        return (ROOT / self.path).read_text(encoding="utf-8")

    def inline_commands(self) -> list[str]:
        """What a document's lines name between backticks: whole commands, or their beginnings."""
        text = re.sub(r"(?ms)^```.*?^```", "", self.text)
        return [] if self.is_script else re.findall(r"`((?:emu3|make|python) [^`]+)`", text)


def sources() -> list[Source]:
    """Every document and every script of an example that may show a command.

    Not the CHANGELOG, which names commands of the past.
    """
    patterns = ("*.md", "docs/*.md", "examples/**/*.md", "examples/**/*.sh")
    paths = {str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern)}
    return [Source(path) for path in sorted(paths - {"CHANGELOG.md"})]


@functools.cache
def commands_of(source: Source) -> tuple[list[list[str]], str]:
    """The commands in their order, each as a list of words, and what bash complained of.

    Placeholders have a value.
    """
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder), source)
        photos = Path(folder) / "demo" / "photos"
        photos.mkdir(parents=True)
        (photos / "cat.txt").write_text("A cat.", encoding="utf-8")
        if source.is_script:
            launcher = "sbatch" if "#SBATCH" in source.text else "bash"
            scripts = [[launcher, source.path, *ARGUMENTS.get(source.path, [])]]
        else:
            scripts = [["bash", "-euc", block] for block in blocks(source.text, "bash")]
        errors = [_run_beside_stand_ins(Path(folder), script) for script in scripts]
        record = Path(folder) / "record"
        written = record.read_text(encoding="utf-8") if record.exists() else ""
    calls = [call.split("\0")[:-1] for call in written.split("\x1e\0")[:-1]]
    return [[PLACEHOLDERS.get(word, word) for word in words] for words in calls], "".join(errors)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", text)


def lay_out(folder: Path, source: Source) -> None:
    """Make a working directory: what the repository has, and the recipe that a document shows."""
    for name in ("benchmarks", "examples", "tools", "docs"):
        (folder / name).symlink_to(ROOT / name)
    for block in blocks(source.text, "yaml"):
        if "out" in yaml.safe_load(block):
            (folder / "recipe.yaml").write_text(block, encoding="utf-8")


def _run_beside_stand_ins(folder: Path, command: list[str]) -> str:
    programs = folder / "bin"
    if not programs.exists():
        _write_stand_ins(programs)
    (home := folder / "home").mkdir(exist_ok=True)
    if not (home / "emu3-megatron").exists():
        (home / "emu3-megatron").symlink_to(ROOT)
    environment = {**_ENVIRONMENT, "PATH": str(programs), "HOME": str(home)}
    environment["RECORD"] = str(folder / "record")
    done = subprocess.run(
        [programs / command[0], *command[1:]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        encoding="utf-8",
    )
    return done.stderr or (f"status {done.returncode}\n" if done.returncode else "")


def _write_stand_ins(folder: Path) -> None:
    folder.mkdir()
    for name in PROGRAMS:
        _write_program(folder / name, _WRITE_DOWN)
    for name, does in _SLURM.items():
        _write_program(folder / name, f"#!/bin/bash\n{does}\n")
    for name in TOOLS:
        for place in os.defpath.split(":"):
            if (Path(place) / name).exists():
                (folder / name).symlink_to(Path(place) / name)
                break


def _write_program(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
