"""Samples while training: drawn from the recipe's captions."""

import pytest
from PIL import Image

from emu3_megatron.config import Recipe
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.errors import InputError
from emu3_megatron.evaluation.samples import DrawSamples
from emu3_megatron.model import build_decoder
from emu3_megatron.vision.tokenizer import VisionTokenizer


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    network = TokenizerNetwork(
        codebook_size=64, base_channels=32, channel_multiplier=(1, 1, 1, 1), num_res_blocks=1
    )
    VisionTokenizer(network).save(tmp_path / "tokenizer")
    prompts = [
        {"caption": "a cat", "height": 2, "width": 3},
        {"caption": "", "height": 2, "width": 1},
    ]
    return Recipe.model_validate(
        {
            "run": {"dir": tmp_path, "steps": 1},
            "model": {"preset": "emu3-tiny", "layers": 1, "codes": 64},
            "data": {"context": 64, "sources": [{"pack": "none.pack"}]},
            "batch": {"size": 1},
            "optimizer": {"lr": 1e-3},
            "sample": {"every": 1, "tokenizer": tmp_path / "tokenizer", "prompts": prompts},
        }
    )


def test_an_image_for_each_prompt(mesh, recipe, tmp_path):
    hook = DrawSamples(recipe.sample, recipe.model.vocabulary())

    drawn = hook.draw(build_decoder(recipe.model).eval(), {})
    images = hook.save(drawn, tmp_path / "samples")

    sizes = [Image.open(tmp_path / "samples" / f"{i}.png").size for i in (0, 1)]
    assert sizes == [(24, 16), (8, 16)]
    assert images["a cat"] == tmp_path / "samples" / "0.png"


def test_a_tokenizer_of_another_codebook(recipe):
    recipe.model = recipe.model.model_copy(update={"codes": 128})

    with pytest.raises(InputError, match=r"sample\.tokenizer has 64 codes, the model 128"):
        DrawSamples(recipe.sample, recipe.model.vocabulary())
