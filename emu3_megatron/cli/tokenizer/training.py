"""`emu3 tokenizer train`: trains the vision tokenizer."""

from pathlib import Path
from typing import Annotated

import typer

from emu3_megatron.cli.arguments import Overrides, RecipeName
from emu3_megatron.config.load import load_recipe
from emu3_megatron.config.tokenizer import TokenizerRecipe


def train(
    recipe: RecipeName,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="run folder; the tokenizer is FOLDER/tokenizer")
    ],
    overrides: Overrides = None,
) -> None:
    """Train it on a folder of photos and clips."""
    loaded = load_recipe(TokenizerRecipe, recipe, overrides or [])
    import torch

    from emu3_megatron.tokenizer_training.trainer import train_tokenizer

    train_tokenizer(loaded, out, "cuda" if torch.cuda.is_available() else "cpu")
    print(f"tokenizer: {out / 'tokenizer'}")
