"""With 32,768 codes of length 4, as Emu3 has them, nearly every code is used. Minutes long."""

from pathlib import Path

import pytest
import torch
from support.tokenizers import start_tokenizer, tokenizer_recipe

from emu3_megatron.demo.material import lay_out
from emu3_megatron.tokenizer_training.samples import Samples
from emu3_megatron.vision.measures.usage import counts_of, usage_of

CODES = 32_768
TOKENS = 16 * CODES


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("material")
    lay_out(folder / "photos", folder / "clips", 512 * 512)
    return folder / "photos"


def recipe_of(folder: Path, photos: Path, **codebook):
    return tokenizer_recipe(
        folder,
        photos,
        run={"steps": 96},
        network={"codebook_size": CODES, "channel_multiplier": (1, 1, 2, 4)},
        data={"area": 512 * 512, "crop": 128, "zoom": 2, "flip": True},
        batch={"size": 8},
        codebook={"plain_steps": 88, "window": 2, "restart_after": 0, **codebook},
        batch_norm_steps=48,
        optimizer={"lr": 1e-3, "beta2": 0.99, "muon": {"lr": 3e-3}},
    )


def used_after(recipe, mesh):
    """Usage by so many latents, encoded when the training is over."""
    steps = start_tokenizer(recipe, mesh)
    steps.take(0, recipe.run.steps)
    tokenizer, counts, index = steps.trainer.evaluated, torch.zeros(CODES, dtype=torch.int64), 0
    data = recipe.data.model_copy(update={"crop": 256})
    samples = Samples(data, seed=1)
    while counts.sum() < TOKENS:
        pixels = samples.read(index).pixels
        counts += counts_of(tokenizer.encode_images(pixels[None]), CODES)
        index += 1
    return usage_of(counts)


@pytest.mark.slow
def test_nearly_all_are_used_after_kmeans(mesh, photos, tmp_path):
    usage = used_after(recipe_of(tmp_path, photos), mesh)
    assert usage.share >= 0.9
    assert usage.perplexity >= CODES / 2


@pytest.mark.slow
def test_without_kmeans_and_restarts_few_are(mesh, photos, tmp_path):
    usage = used_after(recipe_of(tmp_path, photos, plain_steps=0, kmeans=False), mesh)
    assert usage.share < 0.5
