"""What all endpoints share: the model, the engine, workers for pictures, and who is let in."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch

from emu3_megatron.generation.files.reading import Sizes
from emu3_megatron.serving.bounds import Bounds
from emu3_megatron.serving.calls import Guard, Reader
from emu3_megatron.serving.engine import Engine
from emu3_megatron.serving.errors import Refused, broken, full, too_long, unavailable, wrong
from emu3_megatron.serving.metrics import Metrics
from emu3_megatron.serving.videos import Videos
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary

T = TypeVar("T")

_WORKERS = 2  # threads that code pictures and encode texts
_RETRY_SECONDS = 5


@dataclass(frozen=True)
class ServedModel:
    """What is served.

    Attributes:
        name: by which clients call it.
        context: tokens of a row of the KV pool: of a prompt and its result.
        rows: of the pool.
        grid: rows and columns of codes of a picture whose size nobody gives.
        guidance: of pictures for which nobody gives it.
        shown: at which sizes pictures are shown to the model.
    """

    name: str
    vocabulary: Vocabulary
    tokenizer: VisionTokenizer
    context: int
    rows: int
    grid: tuple[int, int]
    guidance: float
    shown: Sizes = field(default_factory=Sizes)
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """The bytes of each token of text."""
        return self.vocabulary.encoding.tokens()

    @cached_property
    def _other_names(self) -> list[str]:
        return self.vocabulary.surfaces()

    def token_name(self, token: int) -> str:
        """A token as a string; no two have the same."""
        if token >= self.vocabulary.num_text:
            return self._other_names[token - self.vocabulary.num_text]
        content = self.token_bytes[token]
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self.token_bytes))

    def check_text(self, text: str, param: str) -> None:
        """Refuse, without encoding it, a text that cannot fit; raises Refused."""
        most = self.context * self._longest_token
        if len(text) > most:
            raise wrong(f"{param}: {len(text):,} characters are too long for the context", param)

    def check_length(self, prompt: int, tokens: int) -> None:
        """Raises Refused when a prompt and its result do not fit into a row."""
        if prompt + tokens > self.context:
            raise too_long(prompt + tokens, self.context)

    def check_rows(self, rows: int) -> None:
        """Raises Refused when a single result needs more rows than there are."""
        if rows > self.rows:
            raise wrong("the server has no place for guidance; give 1", "guidance")


class Service:
    """The model and the engine, with what bounds their use."""

    def __init__(
        self,
        model: ServedModel,
        engine: Engine,
        metrics: Metrics,
        bounds: Bounds | None = None,
        key: str | None = None,
    ):
        model.check_text("", "")  # reads the vocabulary now, not in the first call
        self.model = model
        self.engine = engine
        self.metrics = metrics
        self.bounds = bounds or Bounds()
        self.guard = Guard(key)
        self.reader = Reader(self.bounds)
        self.videos = Videos(self.bounds.videos)
        self.is_draining = False
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="worker")
        self._rows = 0  # that calls have asked for and not given back

    def check_ready(self) -> None:
        """Raises Refused when nothing new is taken."""
        if self.engine.has_failed:
            raise broken()
        if self.is_draining:
            raise unavailable("the server is shutting down")

    def check_model(self, name: str | None) -> None:
        if name not in (None, "", self.model.name):
            raise Refused(
                404, "there is no such model; /v1/models says what there is", "model", "no_model"
            )

    def check_place(self, rows: int) -> None:
        """Raises Refused when `admit` would."""
        self.check_ready()
        if self._rows and self._rows + rows > self.model.rows + self.bounds.queue:
            raise full(_RETRY_SECONDS)

    @contextmanager
    def admit(self, rows: int) -> Iterator[None]:
        """Hold rows for as long as a call takes; raises Refused when too many are waited for."""
        self.check_place(rows)
        self._rows += rows
        try:
            yield
        finally:
            self._rows -= rows

    @property
    def is_busy(self) -> bool:
        """A call holds rows."""
        return self._rows > 0

    async def in_worker(self, work: Callable[[], T]) -> T:
        """Do work that takes long outside of the event loop and of the engine's thread."""
        run = lambda: _run(work, self._device)
        return await asyncio.get_running_loop().run_in_executor(self._workers, run)

    @cached_property
    def _device(self) -> torch.device:
        return next(self.model.tokenizer.parameters()).device

    def new_seed(self) -> int:
        """A seed for a call that gives none."""
        return int(np.random.default_rng().integers(1 << 31))

    async def close(self) -> None:
        """End what is under way."""
        await self.videos.stop()
        self._workers.shutdown(wait=False, cancel_futures=True)


def _run(work: Callable[[], T], device: torch.device) -> T:
    if device.type != "cuda":
        return work()
    # A stream of its own: the decoder's steps do not wait for it.
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        result = work()
    stream.synchronize()
    return result
