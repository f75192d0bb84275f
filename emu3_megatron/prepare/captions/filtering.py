"""Leaves out captions that are too short, or in a language that is not wanted."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from emu3_megatron.config.prepare import CaptionConfig
from emu3_megatron.prepare.items import Failed, attempt
from emu3_megatron.prepare.scores.language import (
    IDENTIFIED_BY,
    UNKNOWN,
    identify,
    language_fault,
)
from emu3_megatron.prepare.tables import Row, read_tables, write_table
from emu3_megatron.prepare.words import words_of
from emu3_megatron.prepare.workspace import Workspace, chunks, digest

_CAPTIONS = 4096  # a task

Scores = dict[str, tuple[str, float]]
"""Language and score, by the digest of a caption."""


@dataclass(frozen=True)
class LanguageTask:
    out: Path
    captions: list[str]

    @property
    def size(self) -> int:
        return len(self.captions)


class IdentifyCaptions:
    """Writes the language of each caption, with its score."""

    def __call__(self, task: LanguageTask) -> None:
        write_table(task.out, "languages", [self._row(caption) for caption in task.captions])

    def _row(self, caption: str) -> Row:
        key = digest(caption)
        found = attempt(key, lambda: identify(caption), timed=False)
        language, score = (UNKNOWN, 0.0) if isinstance(found, Failed) else found
        return {"key": key, "language": language, "language_score": score}


def filter_captions(
    workspace: Workspace, kind: str, rows: Sequence[Row], config: CaptionConfig
) -> None:
    """Leave captions out, and set an item aside that has none left, for the reason of the first.

    Fills `captions_left_out`, and the languages of the captions that stay with their scores.
    """
    if not (config.languages or config.min_characters or config.min_words):
        return
    described = [row for row in rows if row["kept"] and row["captions"]]
    captions = {caption: None for row in described for caption in row["captions"]}
    scores = _scores(workspace, kind, captions) if config.languages else {}
    for row in described:
        faults = [_fault(caption, config, scores) for caption in row["captions"]]
        _leave_out(row, faults)
        if config.languages:
            found = [scores[digest(caption)] for caption in row["captions"]]
            row["caption_languages"] = [language for language, _ in found]
            row["caption_language_scores"] = [score for _, score in found]


def _leave_out(row: Row, faults: Sequence[str | None]) -> None:
    pairs = list(zip(row["captions"], faults, strict=True))
    left_out = [f"{fault}: {caption}" for caption, fault in pairs if fault]
    row["captions"] = [caption for caption, fault in pairs if not fault]
    row["captions_left_out"] = [*(row.get("captions_left_out") or []), *left_out]
    if not row["captions"]:
        row["kept"], row["reason"] = False, faults[0]


def _fault(caption: str, config: CaptionConfig, scores: Scores) -> str | None:
    if config.min_characters and len(caption) < config.min_characters:
        return f"short caption: {len(caption)} characters"
    if config.min_words and (words := len(words_of(caption))) < config.min_words:
        return f"short caption: {words} words"
    if not config.languages:
        return None
    fault = language_fault(*scores[digest(caption)], config.languages, config.min_language_score)
    return f"caption in {fault}" if fault else None


def _scores(workspace: Workspace, kind: str, captions: Iterable[str]) -> Scores:
    """Of each caption; what was identified once stays so, whatever else is kept now."""
    folder = workspace.work(kind, "languages") / digest(IDENTIFIED_BY)
    folder.mkdir(parents=True, exist_ok=True)
    known = _read(folder.glob("*.parquet"))
    missing = [caption for caption in captions if digest(caption) not in known]
    tasks = [
        LanguageTask(folder / f"{digest(some)}.parquet", some)
        for some in chunks(missing, _CAPTIONS)
    ]
    workspace.run_all(IdentifyCaptions, tasks, f"{kind}: languages/caption")
    return known | _read(task.out for task in tasks)


def _read(paths: Iterable[Path]) -> Scores:
    return {row["key"]: (row["language"], row["language_score"]) for row in read_tables(paths)}
