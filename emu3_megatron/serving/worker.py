"""What every rank does alike: it carries commands out and lets the generator take a step."""

import sys
import traceback
from collections import deque
from collections.abc import Sequence

from emu3_megatron.errors import InputError
from emu3_megatron.generation.generator import Generator
from emu3_megatron.serving.commands import (
    Begin,
    Begun,
    Cancel,
    Channel,
    Command,
    Declined,
    Event,
    Failed,
    Said,
    Score,
    Scored,
    Stop,
)
from emu3_megatron.serving.scoring import Scorer


class Worker:
    """A generator and a scorer, driven by commands.

    Attributes:
        has_failed: it takes no more commands.
    """

    def __init__(self, generator: Generator, scorer: Scorer):
        self.generator = generator
        self.scorer = scorer
        self.has_failed = False
        self._numbers: dict[int, int] = {}  # of the generator, by key
        self._keys: dict[int, int] = {}  # the other way, in order of arrival
        self._begun: set[int] = set()
        self._to_score: deque[Score] = deque()

    @property
    def is_idle(self) -> bool:
        return self.has_failed or (self.generator.is_idle and not self._to_score)

    def turn(self, commands: Sequence[Command]) -> list[Event]:
        """Carry commands out, then step once and score one sequence, if there is work."""
        if self.has_failed:
            return [Failed()] if commands else []
        try:
            events = [event for command in commands for event in self._take(command)]
            if not self.generator.is_idle:
                events += self._step()
            if self._to_score:
                score = self._to_score.popleft()
                events.append(Scored(score.key, self.scorer(score.tokens, score.top)))
            return events
        except Exception:
            traceback.print_exc(file=sys.stderr)
            self.has_failed = True
            return [Failed()]

    def _take(self, command: Command) -> list[Event]:
        if isinstance(command, Score):
            self._to_score.append(command)
        elif isinstance(command, Cancel):
            self._cancel(command.key)
        elif isinstance(command, Begin):
            return self._begin(command)
        return []

    def _begin(self, command: Begin) -> list[Event]:
        try:
            number = self.generator.submit(
                command.request, command.settings, max_tokens=command.max_tokens
            )
        except InputError as error:
            return [Declined(command.key, str(error))]
        self._numbers[command.key], self._keys[number] = number, command.key
        return []

    def _cancel(self, key: int) -> None:
        self._to_score = deque(score for score in self._to_score if score.key != key)
        if key in self._numbers:
            self.generator.cancel(self._numbers[key])
            self._forget(key)

    def _step(self) -> list[Event]:
        news = self.generator.step()
        events: list[Event] = [*self._newly_begun()]
        for one in news:
            key = self._keys[one.number]
            events.append(Said(key, one.tokens, one.is_done))
            if one.is_done:
                self._forget(key)
        return events

    def _newly_begun(self) -> list[Begun]:
        """Requests leave the queue in their order, for all have the same priority."""
        running = len(self._keys) - self.generator.num_waiting
        begun = [key for key in list(self._keys.values())[:running] if key not in self._begun]
        self._begun.update(begun)
        return [Begun(key) for key in begun]

    def _forget(self, key: int) -> None:
        del self._keys[self._numbers.pop(key)]
        self._begun.discard(key)


def follow(worker: Worker, channel: Channel) -> None:
    """Do what the first rank does, until it stops."""
    while True:
        commands = channel.receive()
        if any(isinstance(command, Stop) for command in commands):
            return
        worker.turn(commands)
