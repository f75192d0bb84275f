"""Run `emu3 …` in a process of its own, as a user does, without the seconds of an import."""

import os
from dataclasses import dataclass
from pathlib import Path

from support.processes import _context


@dataclass(frozen=True)
class Ended:
    """How a command ended, and all that it wrote to the terminal."""

    code: int | None
    said: str


def emu3(*arguments: str | Path, cwd: Path, seconds: float = 120) -> Ended:
    """Run a command in the working directory `cwd`; after so many seconds it is killed."""
    output = cwd / f".said-{os.urandom(4).hex()}"
    words = [str(argument) for argument in arguments]
    process = _context.Process(target=_enter, args=(words, cwd, output))
    process.start()
    process.join(seconds)
    code = process.exitcode
    process.kill()
    process.join()
    said = output.read_text(encoding="utf-8")
    output.unlink()
    return Ended(code, said)


def _enter(words: list[str], cwd: Path, output: Path) -> None:
    import torch

    from emu3_megatron.cli import main

    torch.set_num_threads(1)
    os.chdir(cwd)
    with output.open("w", buffering=1, encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        main(words)
