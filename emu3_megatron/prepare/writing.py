"""What preparing images, clips and text share: one shard, progress, and what cannot be used."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from emu3_megatron.data.writer import TokenWriter, store_writer
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Document
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary


@dataclass
class Counts:
    """What became of the sources.

    Attributes:
        documents, tokens: written.
        skipped: sources that could not be used.
        filtered: sources that a filter left out.
    """

    documents: int = 0
    tokens: int = 0
    skipped: int = 0
    filtered: int = 0

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents, {self.tokens:,} tokens; "
            f"{self.skipped:,} skipped, {self.filtered:,} filtered out"
        )


class FilteredOut(Exception):
    """A filter's reason to leave a source out."""


@dataclass(frozen=True)
class Job:
    """One source: makes its documents, or raises InputError or FilteredOut.

    Attributes:
        size: its share of the progress.
    """

    make: Callable[[], list[Document]]
    size: int = 1


def write_documents(
    out_prefix: str | Path,
    vocabulary: Vocabulary,
    jobs: Iterable[Job],
    *,
    total: int,
    unit: str,
    strict: bool,
) -> Counts:
    """Write the documents of all jobs as one shard.

    Args:
        total: the sum of the jobs' sizes.
        unit: what sizes count, for the progress bar.
        strict: refuse what cannot be used, instead of skipping it with a line on stderr.

    Raises:
        InputError: with `strict`, the first source that cannot be used; or none can; or the text
            vocabulary cannot be read. Nothing is written then.
    """
    vocabulary.encode("a")  # a vocabulary that cannot be read is no fault of the sources
    counts = Counts()
    with (
        store_writer(out_prefix, vocabulary) as writer,
        tqdm(total=total, unit=unit, unit_scale=unit == "B", disable=None) as progress,
    ):
        for job in jobs:
            _run(job, writer, counts, strict)
            progress.update(job.size)
        counts.documents, counts.tokens = writer.documents, writer.tokens
    return counts


def _run(job: Job, writer: TokenWriter, counts: Counts, strict: bool) -> None:
    try:
        documents = job.make()
    except FilteredOut:
        counts.filtered += 1
        return
    except InputError as error:
        if strict:
            raise InputError(f"{error}; mend or remove it, or skip it without strict") from None
        counts.skipped += 1
        tqdm.write(f"skipped {error}", file=sys.stderr)
        return
    for document in documents:
        writer.add(document)


def read_caption(path: Path) -> str:
    """The caption of a photo or clip: the .txt file of the same stem.

    Raises:
        InputError: missing, empty or not UTF-8.
    """
    file = path.with_suffix(".txt")
    try:
        caption = file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise InputError(f"{path}: no caption; write it to {file.name} beside it") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: not UTF-8 text") from None
    if not caption:
        raise InputError(f"{path}: its caption {file.name} is empty")
    return caption


def check_tokenizer(tokenizer: VisionTokenizer, vocabulary: Vocabulary) -> None:
    """Raises InputError when the tokenizer has other codes than the vocabulary."""
    if tokenizer.network.codebook_size != vocabulary.num_codes:
        raise InputError(
            f"the tokenizer has {tokenizer.network.codebook_size:,} codes, the vocabulary "
            f"{vocabulary.num_codes:,}; use the tokenizer that belongs to the model"
        )
