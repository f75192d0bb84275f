"""Runs the commands of a part under its time limit; writes one log and one JSON, all the while."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from gpu_parts.parts import ROOT, Command

_GRACE = 10  # seconds to print a traceback in after the interrupt
_LEAST = 5  # seconds that a command is worth starting for


def _put(line: bytes, log: Any) -> None:
    """Write whole lines to the screen and a log: commands that run beside each other do so too."""
    for file in (sys.stdout.buffer, log):
        file.write(line)
        file.flush()


class Running:
    """A started command, whose output goes to the screen and to a log."""

    def __init__(self, command: Command, limit: float, log: Any):
        self.command, self.started = command, time.monotonic()
        self.until, self.was_stopped = self.started + limit, False
        if command.rows:
            command.rows.parent.mkdir(parents=True, exist_ok=True)
            command.rows.unlink(missing_ok=True)  # of an earlier run
        self.process = subprocess.Popen(
            command.arguments,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._copier = threading.Thread(target=self._copy, args=[log], daemon=True)
        self._copier.start()

    def _copy(self, log: Any) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            _put(line, log)

    def has_ended(self) -> bool:
        """Whether it has, a second from now at the latest; past its limit it is interrupted."""
        late = time.monotonic() - self.until
        if self.process.poll() is None and late > 0:
            # Interrupted, Python prints where it was.
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL if self.was_stopped else signal.SIGINT)
            self.until, self.was_stopped = time.monotonic() + _GRACE, True
        try:
            self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return False
        self._copier.join(_GRACE)  # a process that it left behind may hold the pipe
        return True

    def end(self) -> None:
        """Interrupt it if it runs, and wait."""
        self.until = min(self.until, time.monotonic())
        while not self.has_ended():
            pass

    def result(self) -> dict[str, Any]:
        code = self.process.returncode
        said = "passed" if code == 0 else f"failed ({code})"
        seconds = round(time.monotonic() - self.started, 1)
        said = f"stopped after {seconds:.0f} s" if self.was_stopped else said
        return {"name": self.command.name, "result": said, "seconds": seconds}


class PartRun:
    """A part of `make gpu`. Its log and its results are complete after every command.

    Args:
        part: its name.
        out: folder of `gpu_PART.log` and `gpu_PART.json`.
        seconds: for all commands together.
    """

    def __init__(self, part: str, out: Path, seconds: float):
        out.mkdir(parents=True, exist_ok=True)
        self.part, self.path = part, out / f"gpu_{part}.json"
        self.end = time.monotonic() + seconds
        self.results: list[dict[str, Any]] = []
        self.benchmarks: dict[str, Any] = {}
        self.log = (out / f"gpu_{part}.log").open("wb")

    def __enter__(self) -> Self:
        self.write()
        return self

    def __exit__(self, *error: Any) -> None:
        self.write()
        lines = ["{name:32} {result:20} {seconds:6.1f} s".format(**row) for row in self.results]
        self.say("\n" + "\n".join(lines))
        self.log.close()

    @property
    def passed(self) -> bool:
        return all(row["result"] == "passed" for row in self.results)

    def say(self, line: str) -> None:
        _put(f"{line}\n".encode(), self.log)

    def run(self, command: Command) -> None:
        """One command, if there is time for it."""
        self.beside_each_other([command])

    def beside_each_other(self, commands: Sequence[Command]) -> None:
        """Start commands together and wait for all of them."""
        left = self.end - time.monotonic()
        if left < _LEAST:
            late = {"result": "no time left", "seconds": 0.0}
            self.results += [{"name": command.name, **late} for command in commands]
            return self.write()
        started = []
        for command in commands:
            self.say(f"=== {command.name}")
            try:
                started.append(Running(command, min(command.limit, left), self.log))
            except OSError as error:
                self.say(str(error))
                self.results.append({"name": command.name, "result": "failed", "seconds": 0.0})
        try:
            for one in started:
                while not one.has_ended():
                    self._take_rows(one.command)
        finally:
            for one in started:
                one.end()
                self.results.append(one.result())
                self._take_rows(one.command)

    def _take_rows(self, command: Command) -> None:
        """What a command has measured so far; a file that is being written is read next time."""
        if command.rows is None or not command.rows.exists():
            return
        try:
            found = json.loads(command.rows.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            return
        if found != self.benchmarks.get(command.name):
            self.benchmarks[command.name] = found
            self.write()

    def write(self) -> None:
        whole = {"part": self.part, "commands": self.results, "results": self.benchmarks}
        fresh = self.path.with_suffix(".tmp")
        fresh.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        fresh.replace(self.path)
