"""A hook that draws images from fixed captions while training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emu3_megatron.config.training import SampleConfig
from emu3_megatron.errors import InputError
from emu3_megatron.generation.images import VisionPrompt, draw, save_image
from emu3_megatron.generation.sampling import SamplingSettings, default_guidance
from emu3_megatron.grammar import Meta
from emu3_megatron.model import Decoder
from emu3_megatron.runs.interfaces import Hook, Run, StepResult
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary


class DrawSamples(Hook):
    """Draws the captions of a recipe's `sample` from the live weights.

    A run that is told to leave draws none: its launcher gave it little time.

    Raises:
        InputError: at once, not after hours of training, if the tokenizer is not the model's.
    """

    name = "sampling"
    order = 100  # behind the save: drawing may take long and has nothing to save

    def __init__(self, config: SampleConfig, vocabulary: Vocabulary):
        self.config, self.vocabulary = config, vocabulary
        self.tokenizer = VisionTokenizer.load(config.tokenizer)
        codes = self.tokenizer.network.codebook_size
        if codes != vocabulary.num_codes:
            raise InputError(
                f"sample.tokenizer has {codes:,} codes, the model {vocabulary.num_codes:,}; give "
                "the tokenizer that made the shards"
            )

    def after_step(self, run: Run, step: int, result: StepResult, is_last: bool) -> None:
        if result.verdict.leaves or not (step % self.config.every == 0 or is_last):
            return
        folder = run.folder / "samples" / f"step-{step:08d}"
        trainer: Any = run.trainer
        with trainer.engine.decoder() as decoder:
            drawn = self.draw(decoder, run.about)
        images = run.try_to_write("samples", step, lambda: self.save(drawn, folder))
        run.log.show(step, images or {})

    def draw(self, decoder: Decoder, about: dict[str, Any]) -> Sequence[np.ndarray]:
        """The codes of each caption's image; a call on every rank."""
        settings = SamplingSettings(default_guidance(about), top_k=self.config.top_k)
        prompts = [VisionPrompt(p.caption, Meta(p.height, p.width)) for p in self.config.prompts]
        return draw(decoder, self.vocabulary, prompts, settings)

    def save(self, drawn: Sequence[np.ndarray], folder: Path) -> dict[str, Path]:
        """Write a folder's 0.png, 1.png and so on; returns them by their captions."""
        images = {}
        for i, (codes_fhw, prompt) in enumerate(zip(drawn, self.config.prompts, strict=True)):
            images[prompt.caption] = folder / f"{i}.png"
            save_image(self.tokenizer, codes_fhw[0], images[prompt.caption])
        return images
