"""The generator: rows that join and leave at any step, over one KV pool."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from emu3_megatron import progress
from emu3_megatron.errors import InputError
from emu3_megatron.generation.drawing import Drawing
from emu3_megatron.generation.forward import DecodeForward
from emu3_megatron.generation.graphs import GraphedForward
from emu3_megatron.generation.jobs import UNKNOWN, Job, Request, Row
from emu3_megatron.generation.options import PLAIN, EngineOptions
from emu3_megatron.generation.pool import PREFILL, KVPool
from emu3_megatron.generation.raster import Choice
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.generation.speculation import Speculation
from emu3_megatron.generation.transfers import ToHost, to_device
from emu3_megatron.generation.weights import DecodeWeights
from emu3_megatron.model import Decoder
from emu3_megatron.vocabulary import Vocabulary

_WIDTH = 2  # tokens of a row that a decode step reads: a code, and what is forced after it
_FORCED = 4  # unread tokens at the end of a grid: a code, EOL, EOF, EOI


@dataclass(frozen=True)
class Progress:
    """What a step brought to a request.

    Attributes:
        number: of the request, from `submit`.
        tokens: new ones, after those reported before.
        is_done: it has left.
    """

    number: int
    tokens: list[int]
    is_done: bool


class Generator:
    """Continues prompts as the grammar allows.

    What a request says depends on its prompts, settings and seed alone, not on what else runs.
    Tensor parallel ranks call alike and get the same.

    Args:
        decoder: from `open_decoder`, or an engine's `decoder()`: no dropout, no sequence
            parallelism.
        rows: of the KV pool. A request takes one; under guidance two.
        capacity: tokens that a row can hold, prompt and result.
        eight_bit: multiply by a copy of the layers' weights in 8 bits. Faster where reading weights
            is what takes time, and not the same tokens.
        speculate: tokens of a row that a step reads at most, where those that come next are guessed
            and checked; the same tokens. 1 is none. Steps without guesses take over while they are
            faster.

    Raises:
        InputError: the decoder is split by context parallelism, or `speculate` is too large.
    """

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: Vocabulary,
        *,
        rows: int,
        capacity: int,
        eight_bit: bool = False,
        speculate: int = 1,
    ):
        if decoder.config.context_parallel_size > 1:
            raise InputError(
                "no sampling with parallel.context > 1; load the checkpoint with context=1"
            )
        assert not decoder.training, "dropout would act"
        weights = DecodeWeights.of(decoder)
        if eight_bit:
            weights = weights.in_eight_bits()
        self.vocabulary = vocabulary
        self.device = weights.device
        self.pool = KVPool(weights, rows, capacity)
        self.forward = DecodeForward(weights, self.pool)
        # The host reads what a GPU has drawn while the GPU is at work on the next step.
        self.runs_ahead = self.device.type == "cuda"
        self._graphed = GraphedForward(self.forward) if self.device.type == "cuda" else None
        self._rows: list[Row] = []  # those in the pool, by place
        self._running: list[Job] = []
        self._waiting: list[Job] = []
        self._unread: list[tuple[list[Job], ToHost]] = []  # drawn codes
        self._changed: dict[int, Job] = {}
        self._count = 0
        self._hidden_rh = weights.head_vh.new_zeros(rows, weights.head_vh.shape[1])
        self._drawn_r = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self._drawing = Drawing(self.forward, vocabulary)
        self._last_bwh: Tensor | None = None  # the states of the last decode step
        self.speculation = Speculation(speculate, self.device)

    def submit(
        self,
        request: Request,
        settings: SamplingSettings,
        *,
        max_tokens: int,
        priority: int = 0,
    ) -> int:
        """Take a request in; it begins in a later step.

        Args:
            max_tokens: it ends with so many new tokens, if not before.
            priority: the highest first; they put back running requests of lower priority, which
                begin anew when there is place, and say the same.

        Returns:
            Its number.

        Raises:
            InputError: a prompt is empty, breaks the grammar, or is too long for the pool; or a
                negative is missing.
        """
        job = Job(self._count, request, settings, self.vocabulary, max_tokens, priority)
        if job.size > self.pool.capacity:
            raise InputError(
                f"a request of {job.size:,} tokens, prompt and result; a row of the KV pool holds "
                f"{self.pool.capacity:,}"
            )
        if len(job.rows) > self.pool.rows:
            raise InputError(f"guidance takes two rows of the KV pool, which has {self.pool.rows}")
        self._count += 1
        self._waiting.append(job)
        return job.number

    def cancel(self, number: int) -> None:
        """Forget a request, whatever it has said; nothing happens if it has left."""
        self._read_drawn()
        self._waiting = [job for job in self._waiting if job.number != number]
        for job in [job for job in self._running if job.number == number]:
            self._leave(job)
        self._changed.pop(number, None)

    @property
    def is_idle(self) -> bool:
        """No request is under way."""
        return not (self._waiting or self._running or self._unread or self._changed)

    @property
    def num_rows(self) -> int:
        """Rows of the pool in use."""
        return len(self._rows)

    @property
    def num_running(self) -> int:
        """Requests that have rows."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """Let requests in, read prompts and drawn tokens, and draw a token for each row that can.

        Returns:
            What the host has learned of each request since the last call.

        Raises:
            FloatingPointError: logits are not finite; the generator is of no further use.
        """
        progress.mark()
        self._admit()
        self._read_prompts()
        self._read_tokens()
        self._draw()
        changed, self._changed = self._changed, {}
        return [
            Progress(job.number, job.news(), job.is_done and job.is_known)
            for job in changed.values()
        ]

    def _admit(self) -> None:
        """Let in who comes first, and put back who has lower priority and stands in the way."""
        self._waiting.sort(key=lambda job: (-job.priority, job.number))
        while self._waiting:
            job = self._waiting[0]
            if not self._make_place(job):
                return
            self._running.append(self._waiting.pop(0))
            for row in job.rows:
                row.place, row.num_read = len(self._rows), 0
                self._rows.append(row)

    def _make_place(self, job: Job) -> bool:
        """Whether there are rows for a job, after lower priorities have left."""
        lower = sorted(
            (other for other in self._running if other.priority < job.priority),
            key=lambda other: (-other.priority, other.number),
        )
        needed = len(job.rows) - (self.pool.rows - len(self._rows))
        if needed > sum(len(other.rows) for other in lower):
            return False
        while needed > 0:
            self._read_drawn()
            last = lower.pop()
            if last in self._running:  # else it has just ended
                self._leave(last)
                self._waiting.append(last)
            needed = len(job.rows) - (self.pool.rows - len(self._rows))
        return True

    def _leave(self, job: Job) -> None:
        """Free a job's rows; the last rows move into their places, so that none is between."""
        self._running.remove(job)
        for row in job.rows:
            last = self._rows.pop()
            if last is not row:
                self.pool.move(last.place, row.place, last.num_read)
                self._hidden_rh[row.place] = self._hidden_rh[last.place]
                self._drawn_r[row.place] = self._drawn_r[last.place]
                self._rows[row.place], last.place = last, row.place
        job.draft = []

    def _read_prompts(self) -> None:
        """Read what is too long for a decode step, in pieces, the oldest request first."""
        left = PREFILL
        for row in [row for job in self._running for row in job.rows]:
            if row.num_unread > _FORCED and left > 0:
                piece = row.next_tokens(min(row.num_unread, left))
                left -= len(piece)
                begin, end = row.num_read, row.num_read + len(piece)
                positions_1w = torch.arange(begin, end, device=self.device)[None]
                tokens_1w = to_device([piece], self.device)
                hidden_1wh = self.forward(tokens_1w, positions_1w, row.place, longest=end)
                row.num_read = end
                self._hidden_rh[row.place] = hidden_1wh[0, -1]

    def _read_tokens(self) -> None:
        """A decode step: read some unread tokens of all rows that have few, and guesses."""
        counts = [self._num_to_read(row) for row in self._rows]
        width = max(counts, default=0)
        self._last_bwh = None
        if not width:
            return
        if width > _WIDTH:  # CUDA graphs are captured for few widths
            width = max(width, self.speculation.window)
        # Rows with fewer read padding, which the next call writes over.
        tokens_bw = self._known(
            [
                row.next_tokens(count) + [0] * (width - count)
                for row, count in zip(self._rows, counts, strict=True)
            ]
        )
        starts = [row.num_read for row in self._rows]
        positions_bw = to_device([[*range(i, i + width)] for i in starts], self.device)
        if self._graphed:
            hidden_bwh = self._graphed(tokens_bw, positions_bw)
        else:
            hidden_bwh = self.forward(tokens_bw, positions_bw, 0, longest=max(starts) + width)
        last = [
            (row.place, min(count, row.num_unread) - 1)
            for row, count in zip(self._rows, counts, strict=True)
            if count
        ]
        places_n, last_n = to_device([*zip(*last, strict=True)], self.device)
        self._hidden_rh[places_n] = hidden_bwh[places_n, last_n]
        for place, index in last:
            self._rows[place].num_read += index + 1
            self._rows[place].behind = index
        self._last_bwh = hidden_bwh

    def _num_to_read(self, row: Row) -> int:
        if not 0 < row.num_unread <= _FORCED:
            return 0
        if row.job.draft:
            return row.num_unread + len(row.job.draft)
        return min(row.num_unread, _WIDTH)

    def _known(self, tokens: list[list[int]]) -> Tensor:
        """Tokens on the device, with those that the host has not read."""
        tokens_bw = to_device(tokens, self.device)
        if self._unread:
            source_b = to_device([row.job.rows[0].place for row in self._rows], self.device)
            drawn_b1 = self._drawn_r[source_b][:, None]
            tokens_bw = torch.where(tokens_bw == UNKNOWN, drawn_b1, tokens_bw).clamp_(min=0)
        return tokens_bw

    def _draw(self) -> None:
        """Draw for each job that can; those that want the same kind of token together."""
        groups: dict[Choice, list[Job]] = {}
        for job in self._running:
            if job.can_draw:
                assert isinstance(job.raster.allowed, Choice)
                groups.setdefault(job.raster.allowed, []).append(job)
        codes = groups.pop(Choice.CODE, [])
        drawn = {choice: ToHost(self._draw_group(choice, jobs)) for choice, jobs in groups.items()}
        self._draw_codes(codes)
        for choice, tokens_b in drawn.items():
            # What may follow a token of text, the host must know.
            for job, token in zip(groups[choice], tokens_b.tolist(), strict=True):
                job.say(token)
                self._changed[job.number] = job
        if not self.runs_ahead:
            self._read_drawn()
        for job in [job for job in self._running if job.is_done]:
            self._leave(job)

    def _draw_codes(self, jobs: list[Job]) -> None:
        if not jobs:
            self._read_drawn()
            return
        before = self.speculation.tokens
        if self.speculation.is_on:
            self._read_drawn()
            self._draw_ahead(jobs)
        else:
            drawn = ToHost(self._draw_group(Choice.CODE, jobs))
            # Those of the step before: the device is at work on these while the host reads.
            self._read_drawn()
            for job in jobs:
                job.say_unknown()
            self._unread = [(jobs, drawn)]
        self.speculation.count(self.speculation.tokens - before or len(jobs))

    def _draw_group(self, choice: Choice, jobs: list[Job]) -> Tensor:
        """A token for each job, int64 [b]; it stays at the place of the job's first row too."""
        places_r = to_device([row.place for job in jobs for row in job.rows], self.device)
        drawn_b = self._drawing.draw(choice, jobs, self._hidden_rh[places_r], [0] * len(jobs))
        if self.runs_ahead:
            firsts_b = to_device([job.rows[0].place for job in jobs], self.device)
            self._drawn_r[firsts_b] = drawn_b
        return drawn_b

    def _draw_ahead(self, jobs: list[Job]) -> None:
        """Draw behind guesses too, and say what that proves."""
        plans = [self.speculation.places(job) for job in jobs]
        repeated = [job for job, (ahead, _) in zip(jobs, plans, strict=True) for _ in ahead]
        sources = [
            self._state_behind(row, guesses)
            for job, (_, behind) in zip(jobs, plans, strict=True)
            for guesses in behind
            for row in job.rows
        ]
        states_nh = self._hidden_rh
        if self._last_bwh is not None:
            states_nh = torch.cat([states_nh, self._last_bwh.flatten(0, 1)])
        hidden_rh = states_nh[to_device(sources, self.device)]
        places = [i for ahead, _ in plans for i in ahead]
        tokens = iter(self._drawing.draw(Choice.CODE, repeated, hidden_rh, places).tolist())
        for job, (ahead, _) in zip(jobs, plans, strict=True):
            self.speculation.accept(job, ahead, [*islice(tokens, len(ahead))])
            self._changed[job.number] = job

    def _state_behind(self, row: Row, guesses: int) -> int:
        """Which state it is: those of all rows come first, then the last step's."""
        if not guesses:
            return row.place
        assert self._last_bwh is not None
        return self.pool.rows + row.place * self._last_bwh.shape[1] + row.behind + guesses

    def _read_drawn(self) -> None:
        """Read the drawn codes that the host does not know."""
        unread, self._unread = self._unread, []
        for jobs, tokens_b in unread:
            for job, token in zip(jobs, tokens_b.tolist(), strict=True):
                job.learn(token)
                self._changed[job.number] = job


def generate(
    decoder: Decoder,
    vocabulary: Vocabulary,
    requests: Sequence[Request],
    settings: SamplingSettings,
    *,
    max_tokens: int,
    progress: bool = False,
    watch: Callable[[Sequence[Sequence[int]]], None] | None = None,
    options: EngineOptions = PLAIN,
) -> list[np.ndarray]:
    """Go on from each prompt, as the grammar allows, until a stop token or `max_tokens` of them.

    Args:
        decoder: see `Generator`.
        settings: of all requests; request i draws with `settings.seed + i`.
        progress: show a bar with rate and time left.
        watch: called after each step with the tokens said so far of each request.
        options: of the `Generator`; what guesses brought is counted there.

    Returns:
        New tokens of each request, int32, without its prompt.

    Raises:
        InputError: a prompt is empty or breaks the grammar, a negative is missing, or the decoder
            is split by context parallelism.
    """
    rows = len(requests) * (1 if settings.guidance == 1 else 2)
    prompts = [prompt for request in requests for prompt in (request.prompt, request.negative)]
    longest = max((len(prompt) for prompt in prompts if prompt is not None), default=0)
    generator = Generator(
        decoder,
        vocabulary,
        rows=rows,
        capacity=longest + max_tokens,
        eight_bit=options.eight_bit,
        speculate=options.speculate,
    )
    for i, request in enumerate(requests):
        own = replace(settings, seed=settings.seed + i)
        generator.submit(request, own, max_tokens=max_tokens)
    said: list[list[int]] = [[] for _ in requests]
    # A bar under another is removed at its end.
    with tqdm(total=max_tokens, unit="tok", leave=None, disable=not progress) as bar:
        while not generator.is_idle:
            for news in generator.step():
                said[news.number] += news.tokens
            bar.update(max(map(len, said)) - bar.n)
            if watch:
                watch(said)
    options.accepted.calls += generator.speculation.calls
    options.accepted.tokens += generator.speculation.tokens
    return [np.array(tokens, np.int32) for tokens in said]
