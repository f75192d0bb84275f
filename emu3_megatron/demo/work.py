"""Runs the commands of a stage as a user would type them; each stage has its log."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from emu3_megatron.errors import InputError


@dataclass
class Work:
    """A demo under way.

    Attributes:
        out: its folder.
        seconds: that each finished stage took.
        commands: of each stage, as one types them.
    """

    out: Path
    seconds: dict[str, float] = field(default_factory=dict)
    commands: dict[str, list[str]] = field(default_factory=dict)
    _stage: str = ""

    @property
    def tokenizer(self) -> Path:
        """The vision tokenizer, which all stages share."""
        return self.out / "tokenizer-run" / "tokenizer"

    def run(self, stage: str, run: Callable[["Work"], None]) -> None:
        """Run a stage; raises InputError, which names it and its log, when a command fails."""
        started = time.perf_counter()
        self._stage, self.commands[stage] = stage, []
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)
        run(self)
        self.seconds[stage] = round(time.perf_counter() - started, 1)

    @property
    def log(self) -> Path:
        """What the commands of the stage under way print."""
        return self.out / "logs" / f"{self._stage}.log"

    def emu3(self, *words: str | Path) -> None:
        self._command("emu3", ["-m", "emu3_megatron"], words)

    def torchrun(self, *words: str | Path) -> None:
        """A command of emu3 in two processes."""
        launch = ["--nproc-per-node", "2", "-m", "emu3_megatron"]
        self._command("torchrun", ["-m", "torch.distributed.run"], [*launch, *words])

    def _command(self, program: str, module: list[str], words: Sequence[str | Path]) -> None:
        arguments = [str(word) for word in words]
        typed = shlex.join([program, *arguments])
        self.commands[self._stage].append(typed)
        with self.log.open("ab") as log:
            _tee(f"$ {typed}\n".encode(), log)
            if _run([sys.executable, *module, *arguments], log):
                raise InputError(f"stage {self._stage}: a command failed; its log is {self.log}")


def _run(command: list[str], log: BinaryIO) -> int:
    """Run to the end, showing and keeping what it prints; returns its exit code."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            _tee(piece, log)
    return process.returncode


def _tee(piece: bytes, log: BinaryIO) -> None:
    log.write(piece)
    log.flush()
    sys.stdout.write(piece.decode(errors="replace"))
    sys.stdout.flush()
