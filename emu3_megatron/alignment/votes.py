"""Votes on samples: files of JSON lines beside them, and what they say in numbers.

A line is one event: {"voter", "time", "prompt"} and one of
  "best", "worst"        numbers of two samples of the prompt (from the voting page)
  "no_difference": true  all samples are alike to this voter
  "undone": true         the voter took the vote on this prompt back
  "scores"               a number for each sample, by its number (imported)

Voters of the page have votes-VOTER.jsonl, an import has imported-FILE.jsonl. The newest line of a
voter on a prompt counts. A best sample scores +1, the worst -1, all others 0;
without a difference all score 0. Imported scores: alignment/imports.
"""

import fcntl
import json
import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from emu3_megatron.alignment.samples import Samples
from emu3_megatron.errors import InputError

Scores = dict[int, float]
"""Of some samples of one prompt, by their number."""

Votes = dict[str, dict[int, Scores]]
"""By voter, then by prompt."""

_NAME = re.compile(r"[\w@.+-]{1,80}")


class _Event(NamedTuple):
    time: float
    voter: str
    prompt: int
    scores: Scores | None  # None: taken back


def votes_file(folder: Path, name: str, kind: Literal["votes", "imported"] = "votes") -> Path:
    """The file that holds a voter's votes, or those of an import.

    Raises:
        InputError: the name is none for a file.
    """
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise InputError(
            f"{name!r}: no name for a voter or a file of votes; use letters, digits and . _ - @ +"
        )
    return folder / f"{kind}-{name}.jsonl"


def read_votes(samples: Samples) -> Votes:
    """The votes in a folder of samples that count.

    Raises:
        InputError: a line is no vote, or names what the folder does not hold; with its number.
    """
    events: list[_Event] = []
    for kind in ("votes", "imported"):
        for path in sorted(samples.folder.glob(f"{kind}-*.jsonl")):
            events += _events(path, samples)
    events.sort(key=lambda event: event.time)  # stable: lines of one moment stay in their order
    votes: defaultdict[str, dict[int, Scores]] = defaultdict(dict)
    for _, voter, prompt, scores in events:
        if scores is None:
            votes[voter].pop(prompt, None)
        else:
            votes[voter][prompt] = scores
    return {voter: prompts for voter, prompts in votes.items() if prompts}


def _events(path: Path, samples: Samples) -> list[_Event]:
    """What a file says, in its order, also where a clock was set back."""
    events: list[_Event] = []
    latest = 0.0
    for number, record in enumerate(_lines(path), 1):
        event = _event(record, samples, f"{path}: line {number}")
        latest = max(latest, event.time)
        events.append(event._replace(time=latest))
    return events


def _event(record: Any, samples: Samples, where: str) -> _Event:
    try:
        moment, voter = float(record["time"]), str(record["voter"])
        prompt = record["prompt"]
    except (TypeError, KeyError, ValueError):
        raise InputError(f"{where}: no vote: time, voter and prompt are needed") from None
    if not isinstance(prompt, int) or not 0 <= prompt < len(samples.prompts):
        raise InputError(
            f"{where}: prompt {prompt!r}, these samples have {len(samples.prompts)} (from 0); "
            "take the votes of this folder"
        )
    size = len(samples.prompts[prompt])
    scores = None if record.get("undone") else _scores(record, size, where)
    return _Event(moment, voter, prompt, scores)


def _scores(record: Mapping[str, Any], size: int, where: str) -> Scores:
    if record.get("no_difference"):
        return dict.fromkeys(range(size), 0.0)
    if "scores" in record:
        return _given_scores(record["scores"], size, where)
    best, worst = (_sample(record.get(name), size, where) for name in ("best", "worst"))
    if best == worst:
        raise InputError(f"{where}: sample {best} is best and worst at once; vote on it again")
    return {**dict.fromkeys(range(size), 0.0), best: 1.0, worst: -1.0}


def _given_scores(given: Any, size: int, where: str) -> Scores:
    try:
        scores = {int(sample): float(score) for sample, score in given.items()}
    except (AttributeError, TypeError, ValueError):
        raise InputError(f"{where}: scores are not numbers by sample") from None
    if not all(map(math.isfinite, scores.values())):
        raise InputError(f"{where}: a score is not a finite number")
    return {_sample(sample, size, where): score for sample, score in scores.items()}


def _sample(number: Any, size: int, where: str) -> int:
    if not isinstance(number, int) or not 0 <= number < size:
        raise InputError(
            f"{where}: sample {number!r}, the prompt has {size} (from 0); "
            "take the votes of this folder"
        )
    return number


def _lines(path: Path) -> Iterator[Any]:
    """The records of a file; a last line without its end was cut off by a crash and never held."""
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except ValueError:
            raise InputError(f"{path}: line {number}: not JSON; restore the file") from None


class VoteLog:
    """The votes of one voter, appended durably: also several processes may write at once."""

    def __init__(self, samples: Samples, voter: str):
        self.samples, self.voter = samples, voter
        self.path = votes_file(samples.folder, voter)

    def append(self, prompt: int, **vote: Any) -> None:
        """Add a line and see it on the disk. The vote must make sense; see this module's lines.

        Raises:
            InputError: the prompt or a sample is unknown, or the best is the worst.
        """
        record = {"time": time.time(), "voter": self.voter, "prompt": prompt, **vote}
        _event(record, self.samples, "vote")
        line = (json.dumps(record) + "\n").encode()
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _cut_torn_line(file.fileno())
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def votes(self) -> dict[int, float]:
        """The prompts that are voted on, with the time of the vote, oldest first."""
        votes: dict[int, float] = {}
        events = _events(self.path, self.samples) if self.path.exists() else []
        for moment, _, prompt, scores in events:
            votes.pop(prompt, None)
            if scores is not None:
                votes[prompt] = moment
        return votes


def _cut_torn_line(descriptor: int) -> None:
    """Cut off what a crash left of a last line: nobody was told that it is held."""
    size = os.fstat(descriptor).st_size
    tail = b""
    while size and not tail.endswith(b"\n"):
        first = max(0, size - 4096)
        tail = os.pread(descriptor, size - first, first)
        size = first + tail.rfind(b"\n") + 1
        if b"\n" in tail:
            break
    os.ftruncate(descriptor, size)
