"""Draws the files of a suite's folder; a sample depends on its suite, prompt and number alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from emu3_megatron.config import ModelConfig
from emu3_megatron.evaluation.suites.place import Place
from emu3_megatron.evaluation.suites.plan import SuiteFile, seed_of
from emu3_megatron.generation.clips import save_clip
from emu3_megatron.generation.estimate import Work, estimate
from emu3_megatron.generation.files.progress import rows_in
from emu3_megatron.generation.generator import Generator
from emu3_megatron.generation.images import VisionPrompt
from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta, Vision, parse, vision_prompt
from emu3_megatron.media.images import to_image
from emu3_megatron.media.writers import write_png
from emu3_megatron.model import Decoder
from emu3_megatron.parallel import Mesh
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary

_MOST_AT_ONCE = 64
_SHARE = 0.8  # of the free memory, for weights and KV pool; the vision tokenizer has the rest


@dataclass(frozen=True)
class Drawn:
    """How all samples of an evaluation are drawn.

    Attributes:
        meta: the grid of each.
        negative: caption that guidance leads away from.
        settings: the seed is that of the whole evaluation.
    """

    meta: Meta
    negative: str
    settings: SamplingSettings

    @property
    def is_guided(self) -> bool:
        return self.settings.guidance != 1

    def work(self, vocabulary: Vocabulary, prompt: str) -> Work:
        """What a sample asks of the decoder."""
        captions = [prompt, self.negative] if self.is_guided else [prompt]
        longest = max(len(vision_prompt(vocabulary, text, self.meta)) for text in captions)
        what = f"{prompt[:40]!r} on {self.meta}"
        return Work.of_vision(longest, self.meta, 0, self.is_guided, what)


def works_of(
    vocabulary: Vocabulary, files: Sequence[SuiteFile], drawn: Drawn, at_once: int
) -> list[list[Work]]:
    """What files ask of the decoder, `at_once` samples at a time."""
    of_prompt = {file.prompt: drawn.work(vocabulary, file.prompt) for file in files}
    works = [of_prompt[file.prompt] for file in files for _ in file.numbers]
    return [works[i : i + at_once] for i in range(0, len(works), at_once)]


def most_at_once(
    model: ModelConfig, precision: str, work: Work, memory: int, tensor: int = 1
) -> int:
    """How many samples of the longest work fill the memory: a power of two, at least 1.

    Args:
        memory: free bytes on each of `tensor` ranks.
    """
    count = 1
    while count < _MOST_AT_ONCE:
        needed = estimate(model, precision, [[work] * (2 * count)], tensor)
        if needed.bytes > _SHARE * memory:
            break
        count *= 2
    return count


@dataclass
class _Begun:
    """A file whose samples are under way, with those that are done."""

    file: SuiteFile
    done: dict[int, Vision] = field(default_factory=dict)


class SuiteDrawer:
    """Draws one data parallel rank's share of the files.

    Its tensor parallel ranks call it alike, and the first of them writes.

    Args:
        network: the vision tokenizer.
        at_once: samples in the KV pool.
    """

    def __init__(
        self,
        place: Place,
        decoder: Decoder,
        vocabulary: Vocabulary,
        network: VisionTokenizer,
        drawn: Drawn,
        mesh: Mesh,
        at_once: int,
    ):
        self.place, self.drawn, self.mesh = place, drawn, mesh
        self.decoder, self.vocabulary, self.network = decoder, vocabulary, network
        self.at_once = at_once

    def draw(self, missing: Sequence[SuiteFile]) -> None:
        """Draw this rank's share of what is missing, which all ranks know alike."""
        files = missing[self.mesh.data_rank :: self.mesh.data_size]
        if not files:
            return
        meta = self.drawn.meta
        samples = sum(len(file.numbers) for file in files)
        rows = samples * meta.frames * meta.height
        hidden = not self.mesh.is_first
        with tqdm(total=rows, unit="row", disable=hidden, dynamic_ncols=True) as bar:
            for done, sample in enumerate(self._samples(files, bar), 1):
                bar.set_postfix_str(f"{done:,} of {samples:,} samples")
                self._keep(*sample)

    def _samples(
        self, files: Sequence[SuiteFile], bar: "tqdm[Any]"
    ) -> Iterator[tuple[_Begun, int, Vision]]:
        """Each sample when it is done: its file, which of the file's it is, and what was drawn."""
        generator = self._generator(files)
        wanted = (
            (begun, i) for begun in map(_Begun, files) for i in range(len(begun.file.numbers))
        )
        running: dict[int, _Running] = {}
        while True:
            while len(running) < self.at_once and (sample := next(wanted, None)):
                number, request = self._submit(generator, *sample)
                running[number] = _Running(*sample, request)
            if not running:
                return
            for news in generator.step():
                one = running[news.number]
                before = rows_in(self.drawn.meta, len(one.said))
                one.said += news.tokens
                bar.update(rows_in(self.drawn.meta, len(one.said)) - before)
                if news.is_done:
                    yield one.begun, one.index, self._vision(running.pop(news.number))

    def _generator(self, files: Sequence[SuiteFile]) -> Generator:
        works = [work for some in works_of(self.vocabulary, files, self.drawn, 1) for work in some]
        return Generator(
            self.decoder,
            self.vocabulary,
            rows=self.at_once * works[0].rows,
            capacity=max(work.length for work in works),
        )

    def _submit(self, generator: Generator, begun: _Begun, index: int) -> tuple[int, Request]:
        prompt = VisionPrompt(begun.file.prompt, self.drawn.meta, self.drawn.negative)
        request = prompt.request(self.vocabulary)
        settings = self.drawn.settings
        seed = seed_of(
            self.place.suite.name, prompt.caption, begun.file.numbers[index], settings.seed
        )
        most = self.drawn.meta.num_tokens + 1
        return generator.submit(request, replace(settings, seed=seed), max_tokens=most), request

    def _vision(self, one: "_Running") -> Vision:
        tokens = np.append(one.request.prompt, np.array(one.said, np.int32))
        vision = parse(self.vocabulary, tokens)[-1]
        assert isinstance(vision, Vision)
        return vision

    def _keep(self, begun: _Begun, index: int, vision: Vision) -> None:
        """Write a file when all of its samples are done."""
        begun.done[index] = vision
        if len(begun.done) < len(begun.file.numbers) or self.mesh.tensor_rank:
            return
        written = self.place.work / f"{self.mesh.rank}{begun.file.path.suffix}"
        self._write(written, [begun.done[i] for i in range(len(begun.done))])
        self.place.keep(written, begun.file)

    def _write(self, path: Path, visions: Sequence[Vision]) -> None:
        if self.place.suite.is_video:
            (clip,) = visions
            save_clip(self.network, clip, path)
            return
        write_png(path, in_a_square([self._image(vision.codes[0]) for vision in visions]))

    def _image(self, codes_hw: np.ndarray) -> Image.Image:
        device = next(self.network.parameters()).device
        return to_image(self.network.decode_images(torch.from_numpy(codes_hw)[None].to(device))[0])


@dataclass
class _Running:
    """A sample under way.

    Attributes:
        index: which of the file's it is.
        said: its tokens so far.
    """

    begun: _Begun
    index: int
    request: Request
    said: list[int] = field(default_factory=list)


def in_a_square(images: Sequence[Image.Image]) -> Image.Image:
    """As many columns as rows, by rows; one image stays as it is."""
    columns = round(len(images) ** 0.5)
    assert columns**2 == len(images)
    width, height = images[0].size
    whole = Image.new("RGB", (columns * width, columns * height))
    for i, image in enumerate(images):
        whole.paste(image, (i % columns * width, i // columns * height))
    return whole
