"""From votes to pairs: of each prompt the best sample against the worst."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from emu3_megatron.alignment.samples import Samples
from emu3_megatron.alignment.votes import Scores, Votes, read_votes
from emu3_megatron.data.shards.writer import Block, block_of, write_shard
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing

HELD_OUT = "-held-out"  # of the name of the second shard


@dataclass(frozen=True)
class Pair:
    """Two samples of a prompt, and the mean of the voters' scores for each."""

    prompt: int
    text: str
    chosen: int
    rejected: int
    chosen_score: float
    rejected_score: float
    voters: int


@dataclass(frozen=True)
class Report:
    """What became of the prompts.

    Attributes:
        pairs, held_out: written to the first and the second shard.
        dropped: number of prompts that gave no pair, by reason.
        voters: prompts that each voted on.
        agreement: share of the comparisons that two voters both made in which they agree; None
            without any.
        comparisons: their number.
    """

    pairs: list[Pair]
    held_out: list[Pair]
    dropped: dict[str, int]
    voters: dict[str, int]
    agreement: float | None
    comparisons: int


def build(folder: Path, out: Path, margin: float, held_out: float = 0) -> Report:
    """Write pairs of a folder of samples as a shard: document 2k chosen, 2k + 1 rejected.

    Beside it, PREFIX.pairs.jsonl says where each pair comes from. With a held-out share a second
    shard, PREFIX-held-out, has the pairs of that share of the prompts.

    Args:
        out: prefix of the shard.
        margin: least difference between the mean scores of best and worst; pairs of nearly equal
            samples make DPO worse (arXiv 2505.11070).
        held_out: share of the prompts, from 0 up to 1.

    Raises:
        InputError: no votes, no pair that is left, or the folder is damaged.
    """
    if not 0 <= held_out < 1:
        raise InputError(f"--held-out {held_out:g}: give a share from 0 up to 1, 0.1 say")
    if not margin >= 0:
        raise InputError(f"--margin {margin:g}: give 0 or more, 1 say")
    samples = Samples(folder)
    votes = read_votes(samples)
    if not votes:
        raise InputError(f"{folder}: no votes yet; use emu3 preferences vote or import")
    samples.store.check_all()
    pairs, dropped = _choose(samples, votes, margin)
    if not pairs:
        reasons = ", ".join(f"{number} {reason}" for reason, number in dropped.items())
        raise InputError(f"{folder}: no pair is left ({reasons}); collect more votes")
    trained, apart = _split(samples, pairs, held_out)
    _write(samples, trained, out)
    if apart:
        _write(samples, apart, out.with_name(out.name + HELD_OUT))
    counts = {voter: len(prompts) for voter, prompts in sorted(votes.items())}
    return Report(trained, apart, dropped, counts, *agreement(votes))


def mean_scores(votes: Votes, prompt: int) -> tuple[Scores, int]:
    """Of each sample the mean over those who scored it, and how many voted on the prompt."""
    given = [prompts[prompt] for prompts in votes.values() if prompt in prompts]
    samples = sorted({sample for scores in given for sample in scores})
    means = {
        sample: float(np.mean([scores[sample] for scores in given if sample in scores]))
        for sample in samples
    }
    return means, len(given)


def _choose(samples: Samples, votes: Votes, margin: float) -> tuple[list[Pair], dict[str, int]]:
    """A pair for each prompt, and the number of prompts without one, by reason."""
    pairs: list[Pair] = []
    dropped: dict[str, int] = {}
    for prompt in range(len(samples.prompts)):
        pair = _best_against_worst(samples, votes, prompt, margin)
        if isinstance(pair, Pair):
            pairs.append(pair)
        else:
            dropped[pair] = dropped.get(pair, 0) + 1
    return pairs, dropped


def _best_against_worst(samples: Samples, votes: Votes, prompt: int, margin: float) -> Pair | str:
    """The pair of a prompt, or why there is none. Of equal scores the first sample is taken."""
    scores, voters = mean_scores(votes, prompt)
    if not scores:
        return "without votes"
    best, worst = max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__)
    gap = scores[best] - scores[worst]
    if gap == 0 or gap < margin:
        return f"nearly equal (difference below {margin:g})"
    first, second = (samples.document(prompt, sample).tokens for sample in (best, worst))
    if np.array_equal(first, second):
        return "of equal tokens"
    text = samples.prompts[prompt][0].text
    return Pair(prompt, text, best, worst, scores[best], scores[worst], voters)


def _split(samples: Samples, pairs: Sequence[Pair], share: float) -> tuple[list[Pair], list[Pair]]:
    """Trained and held-out pairs.

    Which prompts are held out, their hashes say, whether they gave a pair or not: so they are the
    same ones after more votes, and in other folders of samples of these prompts.
    """
    if share == 0:
        return list(pairs), []
    texts = {drawn[0].text for drawn in samples.prompts}
    by_hash = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    apart = set(by_hash[: max(1, round(share * len(texts)))])
    trained = [pair for pair in pairs if pair.text not in apart]
    held_out = [pair for pair in pairs if pair.text in apart]
    for left, some in (("left to train on", trained), ("held out", held_out)):
        if not some:
            raise InputError(
                f"--held-out {share:g}: of {len(pairs)} pairs none is {left}; collect more votes, "
                "or choose another share"
            )
    return trained, held_out


def _write(samples: Samples, pairs: Sequence[Pair], prefix: Path) -> None:
    write_shard(prefix, samples.vocabulary, _blocks(samples, pairs), group=2)
    with replacing(prefix.with_name(f"{prefix.name}.pairs.jsonl")) as beside:
        lines = (json.dumps(_record(samples, pair), ensure_ascii=False) for pair in pairs)
        beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _blocks(samples: Samples, pairs: Sequence[Pair]) -> Iterator[Block]:
    for pair in pairs:
        sides = (pair.chosen, pair.rejected)
        yield block_of([samples.document(pair.prompt, sample) for sample in sides])


def _record(samples: Samples, pair: Pair) -> dict[str, object]:
    return {"samples": str(samples.folder), **asdict(pair)}


def agreement(votes: Votes) -> tuple[float | None, int]:
    """The share of comparisons in which two voters agree, and how many comparisons there are.

    A comparison: two voters, two samples of a prompt, and both voters prefer one of the two.
    """
    agreed = total = 0
    for one, other in itertools.combinations(votes.values(), 2):
        for prompt in one.keys() & other.keys():
            found = _compared(one[prompt], other[prompt])
            agreed, total = agreed + found[0], total + found[1]
    return (agreed / total if total else None), total


def _compared(one: Mapping[int, float], other: Mapping[int, float]) -> tuple[int, int]:
    agreed = total = 0
    for a, b in itertools.combinations(sorted(one.keys() & other.keys()), 2):
        product = (one[a] - one[b]) * (other[a] - other[b])
        agreed += product > 0
        total += product != 0
    return agreed, total
