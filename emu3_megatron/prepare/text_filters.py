"""Decides which texts are left out by their scores, and counts what is masked."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from emu3_megatron.config.filters import PersonalData
from emu3_megatron.config.prepare import TextConfig
from emu3_megatron.prepare.personal_data import MASKED_BY, mask
from emu3_megatron.prepare.scores.language import IDENTIFIED_BY, identify, language_fault
from emu3_megatron.prepare.tables import Row, read_table, write_groups

_COUNTS: dict[PersonalData, str] = {"email": "emails", "ip": "ips", "phone": "phones"}


def has_scores(config: TextConfig) -> bool:
    """Does a filter ask for scores of each text?"""
    return bool(config.languages or config.mask)


def score_settings(config: TextConfig) -> list[Any]:
    """What decides the scores; a threshold does not."""
    return [
        config.column,
        config.min_characters,
        IDENTIFIED_BY if config.languages else None,
        [MASKED_BY, *config.mask] if config.mask else None,
    ]


def line_of_masked(counts: Mapping[str, int]) -> str:
    """How much of each kind of personal data is masked; empty where nothing is."""
    return ", ".join(f"{number:,} {name}" for name, number in counts.items() if number)


def filter_settings(config: TextConfig) -> list[Any]:
    """What decides the tokens, besides the texts; nothing where no filter is on."""
    if not has_scores(config):
        return []
    return [score_settings(config), config.languages, config.min_language_score]


def text_scores(text: str, config: TextConfig) -> Row:
    """Language of a text, and how much in it is personal, as far as the recipe asks for it."""
    row: Row = {}
    if config.languages:
        row["language"], row["language_score"] = identify(text)
    counts = mask(text, config.mask)[1]
    return row | {_COUNTS[kind]: count for kind, count in counts.items()}


def read_faults(scores: Path | None, config: TextConfig) -> dict[str, str]:
    """Why texts are left out, by where they stand."""
    if scores is None or not config.languages:
        return {}
    faults = ((row["text"], _fault(row, config)) for row in read_table(scores))
    return {where: fault for where, fault in faults if fault}


def _fault(row: Row, config: TextConfig) -> str | None:
    if not config.languages:
        return None
    language, score = row["language"], row["language_score"]
    return language_fault(language, score, config.languages, config.min_language_score)


def write_text_scores(
    path: Path, scores: Sequence[Path], config: TextConfig
) -> tuple[Counter[str], Counter[str]]:
    """Join tables of scores into one, with the reason of each text that is left out.

    Returns:
        How many are left out, by the category of the reason; how much is masked in the others.
    """
    left_out: Counter[str] = Counter()
    masked: Counter[str] = Counter({_COUNTS[kind]: 0 for kind in config.mask})

    def groups() -> Iterator[list[Row]]:
        for table in scores:
            rows = read_table(table)
            for row in rows:
                row["reason"] = _fault(row, config)
                if row["reason"]:
                    left_out[row["reason"].partition(":")[0]] += 1
                else:
                    masked.update({name: row[name] for name in masked})
            yield rows

    write_groups(path, "text scores", groups())
    return left_out, masked
