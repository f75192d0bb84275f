"""Writes `events.jsonl`: what happened to a run besides its steps, one line each."""

import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

NAME = "events.jsonl"


class Events:
    """The first rank's record of saves, skipped steps, leavings; and every rank's of its failure.

    Args:
        speaks: whether this is the first rank.
    """

    def __init__(self, folder: Path, speaks: bool):
        self.path = folder / NAME
        self.speaks = speaks

    def add(self, kind: str, step: int, words: str = "", **details: Any) -> None:
        """Write an event down, and say it on the screen if there are words."""
        if not self.speaks:
            return
        self._write(kind, step, details)
        if words:
            with suppress(OSError):  # a screen that is gone
                print(f"step {step}: {words}", file=sys.stderr, flush=True)

    def add_failure(self, step: int, rank: int, job: str, error: Exception) -> None:
        """Write down how this rank failed.

        Args:
            job: tells this start of the run from others.
        """
        why = f"{type(error).__name__}: {error}"
        self._write("failed", step, {"rank": rank, "job": job, "why": why})

    def _write(self, kind: str, step: int, details: dict[str, Any]) -> None:
        event = {"time": round(time.time(), 3), "event": kind, "step": step, **details}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:  # a full disk must not end what it can't be told about
            print(f"{self.path}: {error.strerror}", file=sys.stderr)


def read_events(folder: Path) -> list[dict[str, Any]]:
    """All events; a line that a killed run left unfinished is passed over."""
    path = folder / NAME
    events = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events
