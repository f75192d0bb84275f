"""From the states behind rows to drawn tokens: head, guidance and sampler of each kind of token."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from emu3_megatron.generation.forward import DecodeForward
from emu3_megatron.generation.jobs import NOT_FINITE, Job
from emu3_megatron.generation.noise import noise_key
from emu3_megatron.generation.raster import Choice
from emu3_megatron.generation.sampling import Sampler, guide
from emu3_megatron.generation.transfers import to_device
from emu3_megatron.vocabulary import Vocabulary


class Drawing:
    """Draws for jobs that want the same kind of token."""

    def __init__(self, forward: DecodeForward, vocabulary: Vocabulary):
        self.forward = forward
        self.vocabulary = vocabulary
        device = forward.weights.device
        self._ids = {
            choice: torch.from_numpy(choice.ids(vocabulary)).to(device) for choice in Choice
        }
        self._groups: dict[Choice, _Group] = {}

    def draw(
        self, choice: Choice, jobs: Sequence[Job], hidden_rh: Tensor, ahead: Sequence[int]
    ) -> Tensor:
        """A token for each job, int64 [jobs], or NOT_FINITE; a job may come several times.

        Args:
            hidden_rh: behind the last token of each of the jobs' rows, in order.
            ahead: how many tokens after the next one each of them comes.
        """
        group = self._groups.get(choice)
        if group is None or group.numbers != [job.number for job in jobs]:
            group = self._groups[choice] = _Group(jobs, hidden_rh.device)
        logits_rv = self._logits(choice, hidden_rh)
        logits_bv = logits_rv[group.prompts_b]
        if group.negatives_b is not None:
            negative_bv = logits_rv[group.negatives_b]
            logits_bv = guide(logits_bv, negative_bv, group.sampler.guidance_b1)
        keys = [
            noise_key(job.settings.seed, len(job.said) + i)
            for job, i in zip(jobs, ahead, strict=True)
        ]
        drawn_b = group.sampler.draw(logits_bv, self._ids[choice], keys)
        return drawn_b.where(logits_bv.amax(-1).isfinite(), NOT_FINITE)

    def _logits(self, choice: Choice, hidden_rh: Tensor) -> Tensor:
        first_code = self.vocabulary.first_code
        if choice is Choice.CODE:
            # The rows of codes alone: a fifth of the head at Emu3's vocabulary.
            return self.forward.logits(hidden_rh, first_code, self.vocabulary.size)
        return self.forward.logits(hidden_rh, 0, first_code)[:, self._ids[choice]]


class _Group:
    """What stays the same as long as the same jobs draw.

    Attributes:
        prompts_b: among the jobs' rows that of each job's prompt.
        negatives_b: that of its negative; where there is none the prompt's again, from which
            guidance leads nowhere. None without any.
    """

    def __init__(self, jobs: Sequence[Job], device: torch.device):
        self.numbers = [job.number for job in jobs]
        self.sampler = Sampler([job.settings for job in jobs], device)
        ends = accumulate(len(job.rows) for job in jobs)
        prompts = [end - len(job.rows) for end, job in zip(ends, jobs, strict=True)]
        negatives = [row + len(job.rows) - 1 for row, job in zip(prompts, jobs, strict=True)]
        self.prompts_b = to_device(prompts, device)
        self.negatives_b = to_device(negatives, device) if negatives != prompts else None
