"""Draws several samples of each prompt into a folder; an interrupted run goes on.

While it runs, FOLDER/.work holds the settings and the tokens of each finished batch. Batches are
the same however often a run is interrupted, and a sample draws with a seed of its own, so that no
sample depends on that.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from emu3_megatron import manifest
from emu3_megatron.alignment.samples import MANIFEST, Sample, write_samples
from emu3_megatron.data.shards.writer import Block, block_of
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing, write_json
from emu3_megatron.generation.clips import save_vision
from emu3_megatron.generation.files.begun import lock, require_same
from emu3_megatron.generation.files.prompts import Prompt, first_seeds
from emu3_megatron.generation.generator import generate
from emu3_megatron.generation.images import VisionPrompt
from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Document, Span, Turn, Vision, dialogue, parse, vision_prefix
from emu3_megatron.model import Decoder
from emu3_megatron.parallel.votes import on_first_rank
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary


@dataclass(frozen=True)
class Job:
    """A sample to be drawn."""

    sample: Sample
    prompt: Prompt


def origin(checkpoint: Path, file: Path, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What a manifest says of where samples come from.

    Args:
        checkpoint: its own folder.
        file: of the prompts.
    """
    listed = json.dumps([_described(prompt) for prompt in prompts])
    return {
        "checkpoint": str(checkpoint),
        "checkpoint_digest": manifest.describe(checkpoint / manifest.NAME)["sha256"],
        "prompts_file": str(file),
        "prompts_digest": hashlib.sha256(listed.encode()).hexdigest(),
    }


def _described(prompt: Prompt) -> dict[str, Any]:
    """As earlier versions had it, where nothing is said of what is new, so that digests stay."""
    new = {"negative": "", "seed": None}
    return {n: v for n, v in asdict(prompt).items() if n not in new or v != new[n]}


def jobs_of(prompts: Sequence[Prompt], each: int, seed: int) -> list[Job]:
    """Samples in order: all of the first prompt, then those of the next. Each has a seed."""
    return [
        Job(Sample(number, i, prompt.text, prompt.kind, first + i), prompt)
        for number, (prompt, first) in enumerate(
            zip(prompts, first_seeds(prompts, each, seed), strict=True)
        )
        for i in range(each)
    ]


def batches_of(jobs: Sequence[Job], size: int) -> list[list[Job]]:
    """Jobs in order, up to `size` a batch; in one batch all have one grid, or all are answers."""
    batches: list[list[Job]] = []
    for job in jobs:
        if not batches or len(batches[-1]) == size or not _go_together(batches[-1][-1], job):
            batches.append([])
        batches[-1].append(job)
    return batches


def _go_together(before: Job, job: Job) -> bool:
    """Whether a job may follow another in a batch, which counts its seeds upwards."""
    same = before.prompt.meta == job.prompt.meta
    return same and before.sample.seed + 1 == job.sample.seed


@dataclass
class Sampler:
    """Draws into one folder. All tensor parallel ranks call it alike; the first writes.

    Attributes:
        tokenizer: decodes images and clips for people; None where there are only answers.
        settings: of the sampler; the seed is that of the first sample.
        max_tokens: longest answer.

    Raises:
        InputError: the tokenizer is not the model's.
    """

    decoder: Decoder
    vocabulary: Vocabulary
    tokenizer: VisionTokenizer | None
    settings: SamplingSettings
    max_tokens: int

    def __post_init__(self) -> None:
        codes = self.tokenizer.network.codebook_size if self.tokenizer else None
        if codes not in (None, self.vocabulary.num_codes):
            raise InputError(
                f"the vision tokenizer has {codes:,} codes, the model {self.vocabulary.num_codes:,}"
                "; give the tokenizer that made the shards, with --tokenizer"
            )

    def draw(self, folder: Path, jobs: Sequence[Job], batch: int, about: dict[str, Any]) -> bool:
        """Draw all samples; False when an earlier run had drawn them all.

        Args:
            batch: samples drawn at once.
            about: what the manifest says of where they come from; JSON.

        Raises:
            InputError: the folder holds samples of other settings, or something else.
        """
        about = {**about, **asdict(self.settings), "max_tokens": self.max_tokens, "batch": batch}
        place = _Place(folder)
        batches = batches_of(jobs, batch)
        done = on_first_rank(lambda: place.begin(about))
        if done is None:
            return False
        self._draw_batches(place, batches, done)
        on_first_rank(lambda: self._finish(place, batches, about))
        return True

    def _draw_batches(self, place: "_Place", batches: list[list[Job]], done: set[int]) -> None:
        left = [batch for number, batch in enumerate(batches) if number not in done]
        total, missing = (sum(map(len, some)) for some in (batches, left))
        quiet = torch.distributed.get_rank() != 0
        with tqdm(total=total, initial=total - missing, unit="sample", disable=quiet) as bar:
            for number, batch in enumerate(batches):
                if number in done:
                    continue
                documents = self._documents(batch, progress=not quiet and sys.stderr.isatty())
                on_first_rank(partial(self._keep, place, number, batch, documents))
                bar.update(len(batch))

    def _documents(self, batch: Sequence[Job], progress: bool) -> list[Document]:
        """Draw a batch."""
        settings = replace(self.settings, seed=batch[0].sample.seed)
        meta = batch[0].prompt.meta
        longest = meta.num_tokens + 1 if meta else self.max_tokens
        if meta is None:
            settings = replace(settings, guidance=1.0)  # there is none of answers
        requests = [_request(self.vocabulary, job.prompt) for job in batch]
        drawn = generate(
            self.decoder,
            self.vocabulary,
            requests,
            settings,
            max_tokens=longest,
            progress=progress,
        )
        return [
            _document(self.vocabulary, job.prompt, request.prompt, tokens)
            for job, request, tokens in zip(batch, requests, drawn, strict=True)
        ]

    def _keep(
        self, place: "_Place", number: int, batch: Sequence[Job], documents: Sequence[Document]
    ) -> None:
        """Write the media of a batch and, last, its tokens, by which it is done."""
        for job, document in zip(batch, documents, strict=True):
            self._show(document, place.folder / job.sample.media)
        with replacing(place.part(number)) as beside, beside.open("wb") as file:
            np.savez(file, **block_of(documents)._asdict())

    def _show(self, document: Document, path: Path) -> None:
        """Write what people look at."""
        drawn = parse(self.vocabulary, np.concatenate([s.tokens for s in document.spans[1:]]))
        vision = next((part for part in drawn if isinstance(part, Vision)), None)
        if vision is None:
            with replacing(path) as beside:
                beside.write_text("".join(map(str, drawn)), encoding="utf-8")
            return
        assert self.tokenizer is not None, "images are decoded"
        save_vision(self.tokenizer, vision, path)

    def _finish(self, place: "_Place", batches: list[list[Job]], about: dict[str, Any]) -> None:
        samples = [job.sample for batch in batches for job in batch]
        parts = place.parts(len(batches))
        write_samples(place.folder, self.vocabulary, samples, parts, about)
        place.end()


def _request(vocabulary: Vocabulary, prompt: Prompt) -> Request:
    if prompt.meta is not None:
        return VisionPrompt(prompt.text, prompt.meta, prompt.negative).request(vocabulary)
    if prompt.chat:
        tokens = dialogue(vocabulary, [Turn([prompt.text], None)]).tokens
    else:
        tokens = np.append(vocabulary.bos, vocabulary.encode(prompt.text)).astype(np.int32)
    # An answer that goes over into an image is complete.
    return Request(tokens, stop=(vocabulary.eos, vocabulary.vision_start))


def _document(
    vocabulary: Vocabulary, prompt: Prompt, begun: np.ndarray, drawn: np.ndarray
) -> Document:
    """A sample as it is stored: the prompt as context, then what is trained.

    Args:
        begun: what the model went on from; of an image it ends with IMG.
        drawn: what the model said, up to EOI or EOS.
    """
    if prompt.meta is None:
        answer = drawn[:-1] if drawn[-1:] == vocabulary.vision_start else drawn
        return Document((Span(begun, trained=False), Span(answer)))
    prefix = vision_prefix(vocabulary, prompt.meta)
    caption, vision = begun[: -len(prefix)], np.append(prefix, drawn)
    eos = np.array([vocabulary.eos], np.int32)
    return Document((Span(caption, trained=False), Span(vision), Span(eos)))


class _Place:
    """The folder while samples are drawn into it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.work = folder / ".work"

    def part(self, number: int) -> Path:
        return self.work / f"part-{number:08d}.npz"

    def parts(self, number: int) -> Iterator[Block]:
        for i in range(number):
            with np.load(self.part(i)) as arrays:
                yield Block(**arrays)

    def begin(self, about: dict[str, Any]) -> set[int] | None:
        """Take the folder; the numbers of the batches that are done, None when all are.

        Raises:
            InputError: another process draws into it, or it was begun in another way.
        """
        settings = self.work / "settings.json"
        if (self.folder / MANIFEST).exists():
            require_same(
                self.folder, json.loads((self.folder / MANIFEST).read_text(encoding="utf-8")), about
            )
            self.end()
            return None
        if not self.work.exists() and self.folder.exists() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder}: holds other files; choose another --out")
        self._lock = lock(self.folder, self.work / "lock")
        for unfinished in (*self.work.glob(".*.tmp"), *(self.folder / "media").glob(".*.tmp")):
            unfinished.unlink()
        done = {int(path.stem.removeprefix("part-")) for path in self.work.glob("part-*.npz")}
        if done:
            require_same(self.folder, json.loads(settings.read_text(encoding="utf-8")), about)
        else:
            write_json(settings, about)
        return done

    def end(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
