"""An answer as it comes: text up to a stop string, and pictures that are drawn in it."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Vision, parse
from emu3_megatron.serving.pictures import png_of
from emu3_megatron.serving.service import Service
from emu3_megatron.serving.text import TextOut
from emu3_megatron.vocabulary import Vocabulary

Part = str | bytes
"""A piece of text, or a PNG."""


@dataclass
class Said:
    """What has come.

    Attributes:
        reason: why it ended: `length` at its greatest number of tokens.
    """

    tokens: list[int] = field(default_factory=list)
    reason: Literal["stop", "length"] = "stop"


@dataclass(frozen=True)
class Question:
    """What is to be answered, as the generator takes it."""

    request: Request
    settings: SamplingSettings
    max_tokens: int


class Answering:
    """An answer under way.

    Attributes:
        said: complete when `parts` has ended.
    """

    def __init__(self, service: Service, question: Question, stops: Sequence[str]):
        self.question = question
        self.said = Said()
        self._service = service
        self._out = TextOut(service.model.token_bytes, stops)
        self._picture: list[int] | None = None  # since BOI, while one is drawn

    @property
    def vocabulary(self) -> Vocabulary:
        return self._service.model.vocabulary

    async def parts(self) -> AsyncGenerator[Part, None]:
        """Its parts in order, to iterate over once."""
        question = self.question
        stream = self._service.engine.open(question.request, question.settings, question.max_tokens)
        try:
            async for tokens in stream:
                self.said.tokens += tokens
                for part in self._parts_of(tokens):
                    yield part if isinstance(part, str) else await self._paint(part)
                if self._out.has_stopped:
                    break
            if not self._out.has_stopped and (rest := self._out.finish()):
                yield rest
            self.said.reason = self._reason()
            stream.close(self.said.reason)
        finally:
            stream.close()

    def _reason(self) -> Literal["stop", "length"]:
        ended = self.said.tokens and self.said.tokens[-1] in self.question.request.stop
        return "stop" if ended or self._out.has_stopped else "length"

    def _parts_of(self, tokens: Sequence[int]) -> list[str | list[int]]:
        """Text, and the tokens of whole pictures, in order."""
        vocabulary = self.vocabulary
        parts: list[str | list[int]] = []
        text: list[int] = []
        for token in tokens:
            if token == vocabulary.vision_start and token not in self.question.request.stop:
                parts.append(self._out.feed(text))
                text, self._picture = [], []
            if self._picture is None:
                text.append(token)
                continue
            self._picture.append(token)
            if token == vocabulary.vision_end:
                parts.append(self._picture)
                self._picture = None
        parts.append(self._out.feed(text))
        return [part for part in parts if part]

    async def _paint(self, tokens: list[int]) -> bytes:
        (vision,) = parse(self.vocabulary, tokens)  # type: ignore[arg-type]
        assert isinstance(vision, Vision)
        self._service.metrics.picture("drawn")
        return await self._service.in_worker(lambda: png_of(self._service.model, vision))
