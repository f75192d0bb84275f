"""What other tools say of samples, on one scale: from +1 for the best to -1 for the worst."""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from emu3_megatron.alignment.samples import Samples
from emu3_megatron.alignment.votes import Scores
from emu3_megatron.errors import InputError


@dataclass(frozen=True)
class Ballot:
    """What one voter says of some samples of one prompt.

    Attributes:
        where: file and record, for errors.
        scores: by the ids of samples.
        rated: the scores are ratings on a scale of the voter's own.
        others_equal: samples of the prompt that are not named score 0.
    """

    where: str
    voter: str
    scores: Mapping[str, float]
    rated: bool = False
    others_equal: bool = False


def ranking(
    where: str, ids: Sequence[str], ranks: Sequence[float] | None = None
) -> dict[str, float]:
    """Scores of samples in order of preference: evenly spaced, the first +1, the last -1.

    Args:
        ranks: of each sample, 1 the best, equal ones for a draw; without them as the ids stand.
    """
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if list(ids).count(id) > 1)
        raise InputError(f"{where}: sample {twice} is ranked twice")
    ranks = list(range(len(ids))) if ranks is None else ranks
    first, last = min(ranks, default=0), max(ranks, default=0)
    spread = (last - first) or math.inf
    return {id: 1 - 2 * (rank - first) / spread for id, rank in zip(ids, ranks, strict=True)}


def best_and_worst(where: str, best: Iterable[str], worst: Iterable[str]) -> dict[str, float]:
    """Scores of the best samples and of the worst."""
    best, worst = set(best), set(worst)
    if both := sorted(best & worst):
        raise InputError(f"{where}: sample {both[0]} is best and worst at once")
    return {**dict.fromkeys(sorted(best), 1.0), **dict.fromkeys(sorted(worst), -1.0)}


def collect(samples: Samples, ballots: Iterable[Ballot]) -> dict[tuple[str, int], Scores]:
    """The scores of each voter and prompt; of several on one sample, the mean.

    Ratings are standardised first, over all that a voter rated: mean 0, standard deviation 1.

    Raises:
        InputError: a sample that the folder does not hold, or samples of several prompts in one
            ballot; with the number of the record.
    """
    given: defaultdict[tuple[str, int], defaultdict[int, list[float]]]
    given = defaultdict(lambda: defaultdict(list))
    for ballot in _standardised(list(ballots)):
        prompt, scores = _numbered(samples, ballot)
        for sample, score in scores.items():
            given[ballot.voter, prompt][sample].append(score)
    return {
        key: {sample: float(np.mean(values)) for sample, values in sorted(scores.items())}
        for key, scores in given.items()
    }


def _standardised(ballots: list[Ballot]) -> list[Ballot]:
    ratings: defaultdict[str, list[float]] = defaultdict(list)
    for ballot in ballots:
        if ballot.rated:
            ratings[ballot.voter] += ballot.scores.values()
    scales = {v: (np.mean(some), np.std(some) or math.inf) for v, some in ratings.items()}

    def standard(ballot: Ballot) -> Ballot:
        if not ballot.rated:
            return ballot
        mean, deviation = scales[ballot.voter]
        scores = {id: float((s - mean) / deviation) for id, s in ballot.scores.items()}
        return replace(ballot, scores=scores)

    return [standard(ballot) for ballot in ballots]


def _numbered(samples: Samples, ballot: Ballot) -> tuple[int, Scores]:
    """A ballot's prompt, and its scores by the numbers of the samples."""
    numbers = {id: sample_of(samples, id, ballot.where) for id in ballot.scores}
    prompts = sorted({prompt for prompt, _ in numbers.values()})
    if len(prompts) != 1:
        what = " and ".join(map(str, prompts)) or "none"
        raise InputError(f"{ballot.where}: samples of several prompts or of none: {what}")
    scores = {numbers[id][1]: score for id, score in ballot.scores.items()}
    if ballot.others_equal:
        scores = {**dict.fromkeys(range(len(samples.prompts[prompts[0]])), 0.0), **scores}
    return prompts[0], scores


def sample_of(samples: Samples, id: str, where: str) -> tuple[int, int]:
    """The numbers of prompt and sample that an id such as `12-3` stands for."""
    match = re.fullmatch(r"(\d+)-(\d+)", str(id))
    if match is None:
        raise InputError(f"{where}: {id!r} is no sample; samples have ids such as 12-3")
    prompt, sample = map(int, match.groups())
    if prompt >= len(samples.prompts) or sample >= len(samples.prompts[prompt]):
        raise InputError(f"{where}: sample {id}, which {samples.folder} does not hold")
    return prompt, sample
