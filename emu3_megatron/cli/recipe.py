"""`emu3 recipe`: lists the shipped recipes, or prints one with every key."""

from typing import Annotated

import typer

from emu3_megatron.cli.arguments import Overrides, until_reader_leaves
from emu3_megatron.config.describe import describe, summary_of
from emu3_megatron.config.load import load_recipe, read_recipe, shipped_recipes
from emu3_megatron.config.schemas import schema_of


def recipe(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            show_default=False,
            help="a YAML file, or the name of a shipped recipe; without it, lists those",
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Print a recipe with all its keys, or list those that ship.

    What is printed is a recipe itself: each key with its value, below a comment that says what it
    is, its default, and for training whether it may change when a run resumes.
    """
    with until_reader_leaves():
        if name is None:
            print("\n".join(_shipped()))
            return
        schema = schema_of(read_recipe(name))
        print(describe(load_recipe(schema, name, overrides or [])), end="")


def _shipped() -> list[str]:
    recipes = shipped_recipes()
    width = max(map(len, recipes))
    return [f"{name:{width}}  {summary_of(path)}" for name, path in sorted(recipes.items())]
