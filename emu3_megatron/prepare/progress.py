"""Remembers what a run was asked for, whether it ended, and the time of each stage."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu3_megatron.files import write_json

_NOTHING: dict[str, Any] = {"kinds": [], "finished": False, "stages": {}}


@dataclass(frozen=True)
class Progress:
    """Of the runs into one output folder; the times of several runs add up."""

    out: Path

    @property
    def _path(self) -> Path:
        return self.out / ".work" / "progress.json"

    def read(self) -> dict[str, Any]:
        """`kinds` that the last run was asked for, whether it has `finished`, and `stages`.

        Earlier versions wrote none: then `kinds` and `stages` are empty.
        """
        try:
            found: dict[str, Any] = {
                **_NOTHING,
                **json.loads(self._path.read_text(encoding="utf-8")),
            }
        except (OSError, ValueError, TypeError):
            return _NOTHING
        return found

    def begin(self, kinds: Sequence[str]) -> None:
        write_json(self._path, {**self.read(), "kinds": list(kinds), "finished": False})

    def end(self) -> None:
        write_json(self._path, {**self.read(), "finished": True})

    @contextmanager
    def stage(self, label: str, size: int) -> Iterator[None]:
        """Add the seconds of what is done inside; also when it fails.

        Args:
            label: with the unit of the size behind a slash: `images: scores/photo`.
            size: how much is done, if it does not fail.
        """
        began, done = time.monotonic(), 0
        try:
            yield
            done = size
        finally:
            name, _, unit = label.partition("/")
            found = self.read()
            before = found["stages"].get(name, {"seconds": 0, "done": 0})
            seconds = round(before["seconds"] + time.monotonic() - began, 3)
            about = {"seconds": seconds, "done": before["done"] + done, "unit": unit}
            write_json(self._path, {**found, "stages": {**found["stages"], name: about}})
