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
from emu3_megatron.parallel.votes import on_first_rank
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
            self.draw(decoder, folder, run.about)
        prompts = enumerate(self.config.prompts)
        run.log.show(step, {prompt.caption: folder / f"{i}.png" for i, prompt in prompts})

    def draw(self, decoder: Decoder, folder: Path, about: dict[str, Any]) -> None:
        """Draw into a folder, as 0.png, 1.png and so on: all ranks compute, the first writes."""
        settings = SamplingSettings(default_guidance(about), top_k=self.config.top_k)
        prompts = [VisionPrompt(p.caption, Meta(p.height, p.width)) for p in self.config.prompts]
        drawn = draw(decoder, self.vocabulary, prompts, settings)
        on_first_rank(lambda: self._save(drawn, folder))

    def _save(self, drawn: Sequence[np.ndarray], folder: Path) -> None:
        for i, codes_fhw in enumerate(drawn):
            save_image(self.tokenizer, codes_fhw[0], folder / f"{i}.png")
