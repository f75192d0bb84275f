"""Checks a folder of samples, for `emu3 check`."""

from pathlib import Path
from typing import get_args

from emu3_megatron.alignment.samples import Kind, Samples
from emu3_megatron.alignment.votes import read_votes
from emu3_megatron.errors import InputError


def check_samples(folder: Path) -> str:
    """Read every token, record and vote, and see that all media are there; one line on them.

    Raises:
        InputError: what is damaged or missing.
    """
    samples = Samples(folder)
    samples.store.check_all()
    if len(samples.store) != len(samples):
        raise InputError(f"{folder}: {len(samples.store)} documents for {len(samples)} records")
    everything = [sample for prompt in samples.prompts for sample in prompt]
    for sample in everything:
        if not (folder / sample.media).is_file():
            raise InputError(f"{folder / sample.media}: missing; copy the folder of samples again")
    kinds = [kind for kind in get_args(Kind) if any(s.kind == kind for s in everything)]
    votes = read_votes(samples)
    voters = f"votes of {', '.join(sorted(votes))}" if votes else "no votes"
    return (
        f"{folder}: {len(samples):,} samples ({', '.join(kinds)}) of {len(samples.prompts):,} "
        f"prompts, {samples.store.num_tokens:,} tokens; {voters}"
    )
