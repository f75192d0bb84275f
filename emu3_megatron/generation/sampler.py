"""Images from fixed captions, drawn from the live decoder while it trains."""

from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from emu3_megatron.config import Recipe
from emu3_megatron.errors import InputError
from emu3_megatron.generation.images import VisionPrompt, draw, save_image
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta
from emu3_megatron.model import Decoder
from emu3_megatron.vision.tokenizer import VisionTokenizer


def sampler_of(recipe: Recipe) -> Callable[[Decoder, Path], None]:
    """What draws the recipe's `sample` section into a folder, as `00-caption.png`; on every rank.

    Raises:
        InputError: the vision tokenizer is missing, or has other codes than the model.
    """
    sample = recipe.sample
    assert sample is not None
    vocabulary = recipe.model.vocabulary()
    tokenizer = VisionTokenizer.load(sample.tokenizer)
    if tokenizer.network.codebook_size != vocabulary.num_codes:
        raise InputError(
            f"{sample.tokenizer}: a tokenizer of {tokenizer.network.codebook_size:,} codes, the "
            f"model has {vocabulary.num_codes:,}; give sample.tokenizer another"
        )
    prompts = [VisionPrompt(p.caption, Meta(p.height, p.width)) for p in sample.prompts]
    settings = SamplingSettings(sample.guidance, top_k=sample.top_k, seed=recipe.run.seed)

    def draw_samples(decoder: Decoder, folder: Path) -> None:
        drawn = draw(decoder, vocabulary, prompts, settings)
        if dist.get_rank() == 0:
            for number, (prompt, codes_fhw) in enumerate(zip(prompts, drawn, strict=True)):
                name = f"{number:02d}-{_slug(prompt.caption)}.png"
                save_image(tokenizer, codes_fhw[0], folder / name)

    return draw_samples


def _slug(caption: str) -> str:
    words = "".join(c if c.isalnum() else " " for c in caption).split()
    return "-".join(words[:8]).lower()[:60] or "empty"
