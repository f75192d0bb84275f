"""Speculation that keeps every token: drafts by Jacobi iteration, checked against the keyed draws.

A step reads guesses of the next tokens along with the known ones and draws behind each of them. A
draw counts if all before it were guessed right; then it is the very token that would have been
drawn one at a time, for its noise depends on its place alone. Draws behind a wrong guess are the
next step's guesses (Jacobi decoding, Santilli et al., arXiv 2305.10427; with sampling: Teng et al.,
arXiv 2410.01699).
"""

import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from emu3_megatron.errors import InputError
from emu3_megatron.generation.jobs import Job
from emu3_megatron.generation.pool import SPARE
from emu3_megatron.parallel.groups import tensor_group

_TRIAL, _PHASE = 16, 256  # steps


class Speculation:
    """How far each job is guessed ahead, and what came of it.

    Args:
        window: tokens of a row that a step reads at most, known and guessed; 1 is none.

    Raises:
        InputError: the window is too wide for the pool's spare places.
    """

    def __init__(self, window: int, device: torch.device):
        if not 1 <= window <= SPARE + 1:
            raise InputError(f"speculation: a window of {window}; give 1 (none) to {SPARE + 1}")
        self.window = window
        self.calls = 0
        self.tokens = 0
        self.pace = Pace(device)

    @property
    def is_on(self) -> bool:
        return self.window > 1 and self.pace.speculates

    def count(self, tokens: int) -> None:
        """A step brought codes."""
        if self.window > 1:
            self.pace.count(tokens)

    @property
    def tokens_per_call(self) -> float:
        """Drawn tokens that a step with guesses brought to a job, on average; 1 at least."""
        return self.tokens / self.calls if self.calls else 1.0

    def places(self, job: Job) -> tuple[list[int], list[int]]:
        """What to draw for a job, behind guesses that a step has read.

        Returns:
            Of each code to draw how many tokens it comes after the next one, and behind how many
            guesses it is drawn: behind fewer than it should be at the end, for new guesses.
        """
        upcoming = job.raster.ahead(self.window)
        ahead = [i for i, forced in enumerate(upcoming) if forced is None]
        return ahead, [min(i, len(job.draft)) for i in ahead]

    def accept(self, job: Job, ahead: Sequence[int], drawn: Sequence[int]) -> None:
        """Say what was guessed right and the draw behind it; the other draws are new guesses."""
        values: list[int | None] = list(job.raster.ahead(self.window))
        for i, token in zip(ahead, drawn, strict=True):
            values[i] = token
        right = 0
        while right < len(job.draft) and job.draft[right] == values[right]:
            right += 1
        begun, sure = len(job.said), set(ahead[: sum(i <= right for i in ahead)])
        for i in sorted(sure):
            if not job.is_done:
                job.say(values[i])  # type: ignore[arg-type]
                self.tokens += 1
        self.calls += 1
        said = len(job.said) - begun
        for row in job.rows:
            row.num_read += min(right, said)
        unread = max(row.num_unread for row in job.rows)
        job.draft = values[said : said + max(self.window - unread, 0)]  # type: ignore[assignment]
        if job.is_done:
            job.draft = []


class Pace:
    """Finds by trial, again and again, whether steps with guesses bring more tokens a second."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.speculates = True
        self._steps = 0
        self._tokens = 0
        self._begun = time.perf_counter()
        self._rates: list[float] = []  # tokens a second with guesses, then without

    def count(self, tokens: int) -> None:
        """A step that drew, and how many tokens it brought."""
        self._steps += 1
        self._tokens += tokens
        if self._steps < (_TRIAL if len(self._rates) < 2 else _PHASE):
            return
        now = time.perf_counter()
        if len(self._rates) == 2:  # try again
            self._rates, self.speculates = [], True
        else:
            self._rates.append(self._tokens / (now - self._begun))
            self.speculates = len(self._rates) == 2 and self._guesses_pay()
        self._steps, self._tokens, self._begun = 0, 0, now

    def _guesses_pay(self) -> bool:
        """By the clock of the first of the tensor parallel ranks, which must all do the same."""
        pays = torch.tensor([int(self._rates[0] > self._rates[1])], device=self._device)
        group = tensor_group()
        dist.broadcast(pays, dist.get_global_rank(group, 0), group=group)
        return bool(pays)
