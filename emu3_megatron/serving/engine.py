"""The engine: a thread that owns the generator, and streams of tokens to the event loop."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Sequence
from itertools import count

import numpy as np

from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.sampling import SamplingSettings
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
from emu3_megatron.serving.errors import broken, wrong
from emu3_megatron.serving.metrics import Metrics
from emu3_megatron.serving.scoring import Scores
from emu3_megatron.serving.worker import Worker

_LAST_STEP = 20.0  # seconds
_IDLE = 60.0  # seconds after which an idle engine tells the other ranks that it is there


class Stream:
    """The tokens of a request, as they come. `close` it, whatever happens."""

    def __init__(self, engine: "Engine", key: int, prompt: int):
        self.key = key
        self.timing = engine.metrics.follow(prompt)
        self._engine = engine
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._ended = False

    async def __aiter__(self) -> AsyncIterator[list[int]]:
        """New tokens of each step; raises Refused when the engine fails or declines it."""
        while not self._ended:
            event = await self._events.get()
            if isinstance(event, Said):
                self._ended = event.is_done
                if event.tokens:
                    yield event.tokens
            elif isinstance(event, Declined):
                self._ended = True
                raise wrong(event.reason)
            elif isinstance(event, Failed):
                self._ended = True
                raise broken()

    def put(self, event: Event) -> None:
        """An event of this request, from the engine."""
        if isinstance(event, Begun):
            self.timing.begin()
        elif isinstance(event, Said):
            self.timing.say(len(event.tokens))
        self._events.put_nowait(event)

    def close(self, reason: str = "abort") -> None:
        """End it. A request that has not come to its end frees its rows before the next step.

        Args:
            reason: how it ended, for the metrics: `stop`, `length` or `abort`.
        """
        if self._engine.forget(self.key):
            self.timing.end(reason)


class Engine:
    """Runs the generator while there is work; talks with one event loop.

    All methods but `start`, `stop` and those of its thread are for the event loop's thread.

    Attributes:
        has_failed: it is of no further use.
    """

    def __init__(self, worker: Worker, channel: Channel, metrics: Metrics):
        self.worker = worker
        self.metrics = metrics
        self.has_failed = False
        self._channel = channel
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._keys = count()
        self._streams: dict[int, Stream] = {}
        self._scoring: dict[int, asyncio.Future[Scores]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to work; events go to this loop."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its step, and the other ranks with it.

        A step that hangs is left behind: the thread ends with the process.
        """
        self._commands.put(Stop())
        self._thread.join(_LAST_STEP)

    @property
    def num_streams(self) -> int:
        """Requests under way."""
        return len(self._streams) + len(self._scoring)

    def open(self, request: Request, settings: SamplingSettings, max_tokens: int) -> Stream:
        """Take a request in."""
        if self.has_failed:
            raise broken()
        stream = Stream(self, next(self._keys), len(request.prompt))
        self._streams[stream.key] = stream
        self._commands.put(Begin(stream.key, request, settings, max_tokens))
        return stream

    def forget(self, key: int) -> bool:
        """Cancel a request; False if it was forgotten before."""
        if self._streams.pop(key, None) is None:
            return False
        self._commands.put(Cancel(key))
        return True

    async def score(self, tokens: np.ndarray, top: int) -> Scores:
        """Log-probabilities of given tokens; see `Scorer`."""
        if self.has_failed:
            raise broken()
        key, future = next(self._keys), asyncio.get_running_loop().create_future()
        self._scoring[key] = future
        self._commands.put(Score(key, tokens, top))
        try:
            return await future
        finally:
            if self._scoring.pop(key, None) and not future.done():
                self._commands.put(Cancel(key))

    def _run(self) -> None:
        while True:
            commands = self._take()
            self._channel.send(commands)
            if any(isinstance(command, Stop) for command in commands):
                return
            self._tell(self.worker.turn(commands))

    def _take(self) -> list[Command]:
        """The commands that wait; an idle engine waits for one."""
        commands: list[Command] = []
        try:
            if self.worker.is_idle:
                commands.append(self._commands.get(timeout=_IDLE))
            while True:
                commands.append(self._commands.get_nowait())
        except queue.Empty:
            return commands

    def _tell(self, events: Sequence[Event]) -> None:
        generator = self.worker.generator
        self.metrics.observe(
            running=generator.num_running,
            waiting=generator.num_waiting,
            rows=generator.num_rows / generator.pool.rows,
        )
        if not events:
            return
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._deliver, events)
        except RuntimeError:  # the loop is closed: nobody listens any more
            return

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Failed):
                self._fail()
            elif isinstance(event, Scored):
                future = self._scoring.pop(event.key, None)
                if future and not future.done():
                    future.set_result(event.scores)
            elif event.key in self._streams:
                self._streams[event.key].put(event)

    def _fail(self) -> None:
        self.has_failed = True
        for stream in self._streams.values():
            stream.put(Failed())
        for future in self._scoring.values():
            if not future.done():
                future.set_exception(broken())
        self._scoring.clear()
