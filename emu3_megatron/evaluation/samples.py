"""Images from fixed captions while training."""

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
    """Draw the captions of `recipe.sample` into a folder, as 0.png, 1.png and so on.

    Every rank calls what is returned; the first writes.

    Raises:
        InputError: at once, not after hours of training, if the tokenizer is not the model's.
    """
    assert recipe.sample is not None
    tokenizer = VisionTokenizer.load(recipe.sample.tokenizer)
    if tokenizer.network.codebook_size != recipe.model.codes:
        raise InputError(
            f"sample.tokenizer has {tokenizer.network.codebook_size:,} codes, the model "
            f"{recipe.model.codes:,}; give the tokenizer that made the shards"
        )
    vocabulary = recipe.model.vocabulary()
    settings = SamplingSettings(
        3.0 if recipe.sample.guidance is None else recipe.sample.guidance, top_k=recipe.sample.top_k
    )
    prompts = [
        VisionPrompt(prompt.caption, Meta(prompt.height, prompt.width))
        for prompt in recipe.sample.prompts
    ]

    def sampler(decoder: Decoder, folder: Path) -> None:
        drawn = draw(decoder, vocabulary, prompts, settings)
        if dist.get_rank() == 0:
            for i, codes_fhw in enumerate(drawn):
                save_image(tokenizer, codes_fhw[0], folder / f"{i}.png")

    return sampler
