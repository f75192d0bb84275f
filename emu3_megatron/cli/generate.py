"""`emu3 generate`: draws an image from its caption."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from emu3_megatron.config.training import DecoderRecipe
from emu3_megatron.errors import InputError


def parse_grid(text: str) -> tuple[int, int]:
    height, times, width = text.partition("x")
    if not (times and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise typer.BadParameter(f"{text}: write HEIGHTxWIDTH, 90x90 say")
    return int(height), int(width)


class Grid(tuple[int, int]):
    """Rows and columns of codes."""


def generate(
    checkpoint: Annotated[Path, typer.Option(metavar="FOLDER", help="run or checkpoint folder")],
    prompt: Annotated[str, typer.Option(metavar="TEXT", help="caption of the image")],
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="image to write")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="of the vision tokenizer (default: the recipe's)"),
    ] = None,
    grid: Annotated[
        Grid | None,
        typer.Option(
            parser=parse_grid,
            metavar="HEIGHTxWIDTH",
            help="rows and columns of codes, 8 pixels each (default: the recipe's for this "
            "caption, else the commonest in the training data)",
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="scale of classifier-free guidance; 1 is without (default: the recipe's "
            "sample.guidance, else 3, or 1 where it was never trained without captions)"
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token")] = 1.0,
    top_k: Annotated[int, typer.Option(help="draw among the K likeliest tokens")] = 2048,
    top_p: Annotated[
        float, typer.Option(help="draw among the likeliest tokens that make up this probability")
    ] = 1.0,
    seed: Annotated[int, typer.Option(help="of the draws")] = 0,
) -> None:
    """Draw an image from its caption.

    Several processes share the decoder: torchrun --nproc-per-node N -m emu3_megatron generate ...
    """
    if out.suffix != ".png":
        raise InputError(f"--out {out}: name a file that ends in .png")
    from emu3_megatron import parallel
    from emu3_megatron.checkpoints.folders import find_checkpoint, read_checkpoint
    from emu3_megatron.generation.images import generate_images, save_image
    from emu3_megatron.generation.sampling import (
        SamplingSettings,
        default_guidance,
        warn_of_guidance,
    )
    from emu3_megatron.model.opening import open_decoder
    from emu3_megatron.vision.tokenizer import VisionTokenizer

    mesh = parallel.start(tensor=int(os.environ.get("WORLD_SIZE", 1)))
    mesh.seed(0, 0)
    decoder, recipe = open_decoder(checkpoint, mesh)
    network = VisionTokenizer.load(tokenizer or recipes_tokenizer(recipe, checkpoint))
    about = read_checkpoint(find_checkpoint(checkpoint))
    height, width = grid or known_grid(recipe, about, prompt)
    if guidance is None:
        guidance = default_guidance(about)
    elif mesh.is_first:
        warn_of_guidance(guidance, about)
    drawn = generate_images(
        decoder,
        recipe.model.vocabulary(),
        [prompt],
        height,
        width,
        SamplingSettings(
            guidance=guidance, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
        ),
        progress=mesh.is_first,
    )
    if mesh.is_first:
        save_image(network, drawn[0], out)
        print(f"{out}: {8 * width} x {8 * height} pixels, guidance {guidance:g}")


def recipes_tokenizer(recipe: DecoderRecipe, checkpoint: Path) -> Path:
    """The vision tokenizer that a recipe names; raises InputError when it names none."""
    if recipe.sample is None:
        raise InputError(f"{checkpoint}: its recipe names no vision tokenizer; give --tokenizer")
    return recipe.sample.tokenizer


def known_grid(recipe: DecoderRecipe, about: dict[str, Any], prompt: str) -> tuple[int, int]:
    """The grid that the recipe draws this caption on, else the training data's, else Emu3's."""
    prompts = recipe.sample.prompts if recipe.sample else []
    for known in prompts:
        if known.caption == prompt:
            return known.height, known.width
    return tuple(about.get("grid") or (90, 90))
