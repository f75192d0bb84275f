"""Draws outputs batch by batch and writes their files: images, clips, and clips that go on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from emu3_megatron.generation.clips import Continuation, continue_clips, encode_clip, save_clip
from emu3_megatron.generation.estimate import Work
from emu3_megatron.generation.files.outputs import Output, write_record
from emu3_megatron.generation.files.progress import Previews, RowProgress
from emu3_megatron.generation.images import VisionPrompt, draw, save_image
from emu3_megatron.generation.options import PLAIN, EngineOptions
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta, Vision, vision_prompt
from emu3_megatron.model import Decoder
from emu3_megatron.parallel.votes import on_first_rank
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary


def work_of(
    vocabulary: Vocabulary, output: Output, guidance: float, window: tuple[Meta, int] | None = None
) -> Work:
    """What an output asks of the decoder.

    Args:
        window: of a continuation, the grid that is drawn, and how many latent frames are seen.
    """
    meta, seen = window or (output.meta, 0)
    captions = (
        [output.prompt.text] if guidance == 1 else [output.prompt.text, output.prompt.negative]
    )
    longest = max(len(vision_prompt(vocabulary, caption, meta)) for caption in captions)
    given = seen * (meta.num_tokens // meta.frames)
    what = f"{output.prompt.text[:40]!r} on {meta}"
    return Work.of_vision(longest + given, meta, seen, guidance != 1, what)


def works_of_clips(
    vocabulary: Vocabulary,
    outputs: Sequence[Output],
    guidance: float,
    begun: Meta | None,
    steps: int,
    how: Continuation,
) -> list[list[Work]]:
    """What a batch of clips asks of the decoder: the clips at first, then each continuation.

    Args:
        begun: the grid of the clip that is continued; None: each output's own is drawn at first.
    """
    works = [] if begun else [[work_of(vocabulary, output, guidance) for output in outputs]]
    for step in range(steps):
        windows = [how.window(begun or output.meta, step) for output in outputs]
        works.append(
            [work_of(vocabulary, j, guidance, w) for j, w in zip(outputs, windows, strict=True)]
        )
    return works


@dataclass
class Drawer:
    """Draws outputs and writes files. All tensor parallel ranks call it alike; the first writes.

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
    options: EngineOptions = PLAIN

    def images(self, batch: Sequence[Output], preview: bool = False) -> None:
        """Draw a batch of images, with seeds one after another.

        Args:
            preview: write FILE.preview.png while they grow.
        """
        paths = [output.path.with_suffix(".preview.png") for output in batch]
        metas = [output.meta for output in batch]
        previews = Previews(self.tokenizer, self.vocabulary, metas, paths)
        shows = preview and not self.quiet
        drawn = self._draw(batch, previews if shows else None)

        def save() -> None:
            for output, codes_fhw in zip(batch, drawn, strict=True):
                save_image(self.tokenizer, codes_fhw[0], output.path)
            self._record(batch)
            previews.remove()

        on_first_rank(save)

    def clips(self, batch: Sequence[Output], steps: int, how: Continuation) -> None:
        """Draw a batch of clips, and continue each so many times."""
        drawn = self._draw(batch, None)
        clips = [Vision(o.meta, codes_fhw) for o, codes_fhw in zip(batch, drawn, strict=True)]
        self._finish(batch, self._continued(batch, clips, steps, how))

    def continued(
        self, batch: Sequence[Output], first_tchw: Tensor, fps: float, steps: int, how: Continuation
    ) -> None:
        """Continue a clip that is there, so many times, once for each of the batch."""
        clip = on_first_rank(lambda: encode_clip(self.tokenizer, first_tchw, fps))
        clips = self._continued(batch, [clip] * len(batch), steps, how)
        self._finish(batch, clips, first_tchw)

    def _continued(
        self, batch: Sequence[Output], clips: list[Vision], steps: int, how: Continuation
    ) -> list[Vision]:
        """Step k draws with seeds that are k higher."""
        for step in range(steps):
            with RowProgress([how.window(clip.meta) for clip in clips], self.quiet) as watch:
                clips = continue_clips(
                    self.decoder,
                    self.vocabulary,
                    clips,
                    [output.prompt.text for output in batch],
                    replace(self.settings, seed=batch[0].seed + step),
                    how,
                    negatives=[output.prompt.negative for output in batch],
                    watch=watch,
                    options=self.options,
                )
        return clips

    def _finish(
        self, batch: Sequence[Output], clips: Sequence[Vision], first_tchw: Tensor | None = None
    ) -> None:
        def save() -> None:
            for output, clip in zip(batch, clips, strict=True):
                save_clip(self.tokenizer, clip, output.path, first_tchw)
            self._record(batch)

        on_first_rank(save)

    def _draw(self, batch: Sequence[Output], previews: Previews | None) -> list[np.ndarray]:
        prompts = [
            VisionPrompt(output.prompt.text, output.meta, output.prompt.negative)
            for output in batch
        ]
        with RowProgress([(output.meta, 0) for output in batch], self.quiet) as rows:

            def watch(said: Sequence[Sequence[int]]) -> None:
                rows(said)
                if previews:
                    previews(said)

            settings = replace(self.settings, seed=batch[0].seed)
            return draw(
                self.decoder,
                self.vocabulary,
                prompts,
                settings,
                watch=watch,
                options=self.options,
            )

    def _record(self, batch: Sequence[Output]) -> None:
        if batch[0].in_folder:
            write_record(batch, self._described)

    def _described(self, output: Output) -> dict[str, Any]:
        settings = {n: v for n, v in asdict(self.settings).items() if n != "seed"}
        about = {"negative": output.prompt.negative, "grid": str(output.meta)}
        return {**about, **settings, "checkpoint": self.checkpoint}
