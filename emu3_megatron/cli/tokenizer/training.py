"""`emu3 tokenizer train`: trains the vision tokenizer."""

from typing import Annotated

import typer

from emu3_megatron.cli.arguments import Overrides, RecipeName
from emu3_megatron.config.load import load_recipe
from emu3_megatron.config.tokenizer_training import TokenizerRecipe


def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="resume though the recipe changed what is learned")
    ] = False,
) -> None:
    """Train it on folders of photos and clips.

    Resumes by itself from the newest checkpoint in the recipe's run.dir; the tokenizer is
    run.dir/tokenizer.

    Several processes: torchrun --nproc-per-node N -m emu3_megatron tokenizer train RECIPE ...
    """
    loaded = load_recipe(TokenizerRecipe, recipe, overrides or [])
    from emu3_megatron.tokenizer_training.stage import train_tokenizer

    train_tokenizer(loaded, accept)
