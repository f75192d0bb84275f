"""Writers of metrics: JSON lines, a progress bar, and whatever may fail without ending the run."""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from emu3_megatron.files import replacing
from emu3_megatron.runs.events import Events


class Writer:
    """Takes rows of metrics, and sampled images if it can."""

    def write(self, row: dict[str, Any]) -> None:
        raise NotImplementedError

    def show(self, step: int, images: Mapping[str, Path]) -> None:
        """PNG files by their captions."""

    def close(self) -> None:
        raise NotImplementedError


class JsonLines(Writer):
    """`metrics.jsonl`. Rows past the step that a run resumes from are dropped.

    Rows that a full disk does not take are kept until it does.

    Attributes:
        last_row: the step of the last row that was kept; 0 without one.
    """

    def __init__(self, path: Path, resumed_step: int):
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= resumed_step]
        self.last_row = int(_step_of(kept[-1])) if kept else 0
        with replacing(path) as beside:
            beside.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.file = path.open("ab", buffering=0)
        self.kept = b""

    def write(self, row: dict[str, Any]) -> None:
        self.kept += (json.dumps(row) + "\n").encode()
        end = self.file.seek(0, os.SEEK_END)
        try:
            written = self.file.write(self.kept)
        except OSError as error:
            print(f"{self.file.name}: {error.strerror}; its rows are kept", file=sys.stderr)
            written = 0
        if written == len(self.kept):
            self.kept = b""
        else:
            self.file.truncate(end)  # no half rows

    def close(self) -> None:
        self.file.close()


def _step_of(line: str) -> float:
    """The step of a row; past every step for one that a killed run left unfinished."""
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return math.inf


class ProgressLine(Writer):
    """Rate, time left, and the numbers one watches."""

    def __init__(self, first_step: int, steps: int):
        self.bar = tqdm(initial=first_step, total=steps, unit="step", dynamic_ncols=True)

    def write(self, row: dict[str, Any]) -> None:
        if "validation/loss" in row:
            self.bar.write(f"step {row['step']}: held-out loss {row['validation/loss']:.4f}")
        if "lr" not in row:
            return
        self.bar.set_postfix(
            loss=f"{row.get('loss', math.nan):.4f}",
            lr=f"{row['lr']:.1e}",
            tok_s=f"{row['tokens_per_second']:,.0f}",
            refresh=False,
        )
        self.bar.update(row["step"] - self.bar.n)

    def close(self) -> None:
        self.bar.close()


class BestEffort(Writer):
    """Another writer. Its first failure, of whatever kind, is said, and ends it and not the run.

    Args:
        name: what it is called where its failure is said.
        opening: opens it.
        resumed_step: that the run goes on after.
    """

    def __init__(self, name: str, opening: Callable[[], Writer], events: Events, resumed_step: int):
        self.name, self.events, self.step = name, events, resumed_step
        self.writer: Writer | None = None
        self._attempt(lambda: setattr(self, "writer", opening()))

    def write(self, row: dict[str, Any]) -> None:
        self.step = row["step"]
        if writer := self.writer:
            self._attempt(lambda: writer.write(row))

    def show(self, step: int, images: Mapping[str, Path]) -> None:
        self.step = step
        if writer := self.writer:
            self._attempt(lambda: writer.show(step, images))

    def close(self) -> None:
        if writer := self.writer:
            self._attempt(writer.close)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self.writer = None
            why = " ".join(f"{type(error).__name__}: {error}".split())
            words = f"{self.name} failed ({why}) and gets no more rows until the run is started "
            words += "again; the run goes on, and metrics.jsonl gets all"
            self.events.add("writer failed", self.step, words, writer=self.name, why=why)
