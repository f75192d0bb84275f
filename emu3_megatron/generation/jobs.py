"""Requests, and what the host knows of one under way."""

from dataclasses import dataclass, field

import numpy as np

from emu3_megatron.errors import InputError
from emu3_megatron.generation.raster import Raster
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.vocabulary import Vocabulary

UNKNOWN = -1  # a token that the device has drawn and the host has not read
NOT_FINITE = -2  # drawn in place of a token where the logits are not numbers


@dataclass(frozen=True)
class Request:
    """A prompt to go on from.

    Attributes:
        prompt: int32 [n], n > 0; may end inside an image or a clip.
        negative: what guidance leads away from, int32 [m], m > 0; it ends like the prompt, from its
            last BOI on. Needed where the guidance is not 1.
        stop: tokens that end the row; they are part of the result.
    """

    prompt: np.ndarray
    negative: np.ndarray | None = None
    stop: tuple[int, ...] = ()


@dataclass(eq=False)
class Row:
    """A row of the KV pool: a job's prompt, or its negative, and what the job has said.

    Attributes:
        place: which row of the pool, while the job runs.
        num_read: tokens that are in the pool.
        behind: among the tokens of the step that read it last, which is the last that is known; the
            others were guesses.
    """

    job: "Job" = field(repr=False)
    prompt: list[int]
    place: int = 0
    num_read: int = 0
    behind: int = 0

    @property
    def num_unread(self) -> int:
        return len(self.prompt) + len(self.job.said) - self.num_read

    def next_tokens(self, count: int) -> list[int]:
        """The first `count` unread tokens, and guesses behind them."""
        begin, end = self.num_read, self.num_read + count
        if begin < len(self.prompt):
            known = self.prompt[begin:end]
            return known + self.job.said[: end - begin - len(known)]
        begin, end = begin - len(self.prompt), end - len(self.prompt)
        known = self.job.said[begin:end]
        return known + self.job.draft[: end - begin - len(known)]


class Job:
    """A request under way.

    Attributes:
        said: new tokens so far; UNKNOWN where the host has not read one.
        rows: of the prompt, and with guidance of the negative.
        draft: guesses of the tokens to come, with those that are forced between them.
        is_done: nothing more is to be said.

    Raises:
        InputError: a prompt is empty or breaks the grammar, or a negative is missing.
    """

    def __init__(
        self,
        number: int,
        request: Request,
        settings: SamplingSettings,
        vocabulary: Vocabulary,
        max_tokens: int,
        priority: int,
    ):
        self.number = number
        self.settings = settings
        self.stop = frozenset(request.stop)
        self.max_tokens = max_tokens
        self.priority = priority
        self.rows = [Row(self, prompt.tolist()) for prompt in _prompts(request, settings)]
        self.raster = Raster(vocabulary, request.prompt)
        self.said: list[int] = []
        self.draft: list[int] = []
        self.is_done = max_tokens == 0
        self._unknown: list[int] = []  # places of UNKNOWN in `said`
        self._num_reported = 0
        self._say_forced()

    @property
    def size(self) -> int:
        """Tokens that its longest row may come to."""
        return max(len(row.prompt) for row in self.rows) + self.max_tokens

    @property
    def can_draw(self) -> bool:
        """All of its tokens are in the pool, and one is to be drawn."""
        return not self.is_done and all(row.num_unread == 0 for row in self.rows)

    @property
    def is_known(self) -> bool:
        """The host has read all that was said."""
        return not self._unknown

    def say(self, token: int) -> None:
        """Say a drawn token, and what the grammar forces after it.

        Raises:
            FloatingPointError: the logits that it was drawn from were not finite.
        """
        self._append(_checked(token))
        self._say_forced()

    def say_unknown(self) -> None:
        """Say a code that the host has not read, and what the grammar forces after it."""
        self.draft = []
        self._unknown.append(len(self.said))
        self.said.append(UNKNOWN)
        self.raster.pass_code()
        self.is_done = len(self.said) >= self.max_tokens
        self._say_forced()

    def learn(self, token: int) -> None:
        """The value of the first unknown token; see `say`."""
        self.said[self._unknown.pop(0)] = _checked(token)

    def news(self) -> list[int]:
        """Known tokens that were not reported yet."""
        end = self._unknown[0] if self._unknown else len(self.said)
        begin, self._num_reported = self._num_reported, end
        return self.said[begin:end]

    def _say_forced(self) -> None:
        while not self.is_done and isinstance(self.raster.allowed, int):
            self._append(self.raster.allowed)

    def _append(self, token: int) -> None:
        self.said.append(token)
        self.raster.feed(token)
        self.is_done = token in self.stop or len(self.said) >= self.max_tokens


def _checked(token: int) -> int:
    if token == NOT_FINITE:
        raise FloatingPointError("the decoder's logits are not finite: its weights are damaged")
    return token


def _prompts(request: Request, settings: SamplingSettings) -> list[np.ndarray]:
    prompts = [request.prompt]
    if settings.guidance != 1:
        if request.negative is None:
            raise InputError("guidance needs a negative for every prompt; or set guidance=1")
        prompts.append(request.negative)
    if not all(len(prompt) for prompt in prompts):
        raise InputError("an empty prompt; begin with BOS")
    return prompts
