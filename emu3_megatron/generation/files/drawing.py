"""Draws jobs batch by batch and writes their files: images, clips, and clips that go on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from emu3_megatron.generation.clips import (
    Clip,
    Continuation,
    continue_clips,
    decode_clip,
    fps_of,
    save_clip,
)
from emu3_megatron.generation.estimate import Work
from emu3_megatron.generation.files.outputs import Job, write_record
from emu3_megatron.generation.files.progress import Previews, RowProgress
from emu3_megatron.generation.images import VisionPrompt, draw, save_image
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta, vision_prompt
from emu3_megatron.model import Decoder
from emu3_megatron.parallel.votes import on_first_rank
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary


def work_of(
    vocabulary: Vocabulary, job: Job, guidance: float, window: tuple[Meta, int] | None = None
) -> Work:
    """What a job asks of the decoder.

    Args:
        window: of a continuation, the grid that is drawn, and how many latent frames are seen.
    """
    meta, seen = window or (job.meta, 0)
    captions = [job.prompt.text] if guidance == 1 else [job.prompt.text, job.prompt.negative]
    longest = max(len(vision_prompt(vocabulary, caption, meta)) for caption in captions)
    given = seen * (meta.num_tokens // meta.frames)
    what = f"{job.prompt.text[:40]!r} on {meta}"
    return Work.of_vision(longest + given, meta, seen, guidance != 1, what)


def works_of_clips(
    vocabulary: Vocabulary,
    jobs: Sequence[Job],
    guidance: float,
    begun: Clip | None,
    steps: int,
    how: Continuation,
) -> list[list[Work]]:
    """What a batch of clips asks of the decoder: the clips at first, then each continuation.

    Args:
        begun: the clip that is continued; None: each job's own is drawn at first.
    """
    works = [] if begun else [[work_of(vocabulary, job, guidance) for job in jobs]]
    for step in range(steps):
        windows = [how.window(begun or job.meta, step) for job in jobs]
        works.append(
            [work_of(vocabulary, j, guidance, w) for j, w in zip(jobs, windows, strict=True)]
        )
    return works


@dataclass
class Drawer:
    """Draws jobs and writes files. All tensor parallel ranks call it alike; the first writes.

    Attributes:
        checkpoint: for the record of a folder.
        quiet: show no bar.
    """

    decoder: Decoder
    vocabulary: Vocabulary
    tokenizer: VisionTokenizer
    settings: SamplingSettings
    checkpoint: str
    quiet: bool = False

    def images(self, batch: Sequence[Job], preview: bool = False) -> None:
        """Draw a batch of images, with seeds one after another.

        Args:
            preview: write FILE.preview.png while they grow.
        """
        paths = [job.path.with_suffix(".preview.png") for job in batch]
        metas = [job.meta for job in batch]
        previews = Previews(self.tokenizer, self.vocabulary, metas, paths)
        shows = preview and not self.quiet
        drawn = self._draw(batch, previews if shows else None)

        def save() -> None:
            for job, codes_fhw in zip(batch, drawn, strict=True):
                save_image(self.tokenizer, codes_fhw[0], job.path)
            self._record(batch)
            previews.remove()

        on_first_rank(save)

    def clips(self, batch: Sequence[Job], steps: int, how: Continuation) -> None:
        """Draw a batch of clips, and continue each so many times."""
        drawn = self._draw(batch, None)
        clips = [
            on_first_rank(partial(decode_clip, self.tokenizer, codes_fhw, fps_of(job.meta)))
            for job, codes_fhw in zip(batch, drawn, strict=True)
        ]
        self.continued(batch, clips, steps, how)

    def continued(
        self, batch: Sequence[Job], clips: Sequence[Clip], steps: int, how: Continuation
    ) -> None:
        """Continue clips so many times, step k with seeds that are k higher; write them."""
        for step in range(steps):
            windows = [how.window(clip) for clip in clips]
            with RowProgress(windows, self.quiet) as watch:
                clips = continue_clips(
                    self.decoder,
                    self.vocabulary,
                    self.tokenizer,
                    clips,
                    [job.prompt.text for job in batch],
                    replace(self.settings, seed=batch[0].seed + step),
                    how,
                    negatives=[job.prompt.negative for job in batch],
                    watch=watch,
                )
        on_first_rank(partial(self._save_clips, batch, clips))

    def _draw(self, batch: Sequence[Job], previews: Previews | None) -> list[np.ndarray]:
        prompts = [VisionPrompt(job.prompt.text, job.meta, job.prompt.negative) for job in batch]
        with RowProgress([(job.meta, 0) for job in batch], self.quiet) as rows:

            def watch(said: Sequence[Sequence[int]]) -> None:
                rows(said)
                if previews:
                    previews(said)

            settings = replace(self.settings, seed=batch[0].seed)
            return draw(self.decoder, self.vocabulary, prompts, settings, watch=watch)

    def _save_clips(self, batch: Sequence[Job], clips: Sequence[Clip]) -> None:
        for job, clip in zip(batch, clips, strict=True):
            save_clip(clip, job.path)
        self._record(batch)

    def _record(self, batch: Sequence[Job]) -> None:
        if batch[0].in_folder:
            write_record(batch, self._described)

    def _described(self, job: Job) -> dict[str, Any]:
        settings = {n: v for n, v in asdict(self.settings).items() if n != "seed"}
        about = {"negative": job.prompt.negative, "grid": str(job.meta)}
        return {**about, **settings, "checkpoint": self.checkpoint}
