"""`emu3 prepare`: raw files to shards and packs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from emu3_megatron.cli.arguments import Overrides, new_group, until_reader_leaves
from emu3_megatron.config.load import load_recipe
from emu3_megatron.config.prepare import Kind, PrepareRecipe
from emu3_megatron.errors import InputError

group = new_group(
    help="Photos, clips, text and dialogues to shards and packs.\n\n"
    "The same command goes on after an interruption, and does nothing when all is done.",
    invoke_without_command=True,
)


@group.callback()
def prepared(
    context: typer.Context,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="print what a prepared folder holds and why the rest was set aside; "
            "write it to FOLDER/report.json",
        ),
    ] = None,
) -> None:
    if context.invoked_subcommand is not None:
        if report is not None:
            raise InputError("prepare --report FOLDER: stands alone, without a kind of data")
        return
    if report is None:
        with until_reader_leaves():
            print(context.get_help())
        raise typer.Exit(2)
    from emu3_megatron.prepare.reporting import lines_of, write_report

    with until_reader_leaves():
        for line in lines_of(report, write_report(report)):
            print(line)


OptionalRecipe = Annotated[
    str | None,
    typer.Argument(
        metavar="RECIPE",
        show_default=False,
        help="a YAML file, or the name of a shipped recipe; without one, the defaults",
    ),
]
Out = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="folder to write; the recipe's `out`")
]
Source = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="folder, URL or tars to read; the recipe's `KIND.source`"),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="of the vision tokenizer; the recipe's `tokenizer`"),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="stop at the first item that cannot be used; without it, set it aside"
    ),
]

SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="set aside what cannot be used; without it, stop at the first"),
]


@group.command()
def images(
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    out: Out = None,
    source: Source = None,
    tokenizer: Tokenizer = None,
    strict: Strict = False,
) -> None:
    """Photos: scores, selection, captions, codes, shards, packs."""
    given = _as_overrides({"out": out, "images.source": source, "tokenizer": tokenizer})
    _prepare("images", recipe, overrides, given, strict)


@group.command()
def clips(
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    out: Out = None,
    source: Source = None,
    tokenizer: Tokenizer = None,
    strict: Strict = False,
) -> None:
    """Videos: shots, scores, selection, captions, codes, shards, packs."""
    given = _as_overrides({"out": out, "clips.source": source, "tokenizer": tokenizer})
    _prepare("clips", recipe, overrides, given, strict)


@group.command()
def text(
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    out: Out = None,
    source: Source = None,
    strict: Strict = False,
) -> None:
    """Text, from .jsonl, .parquet and .txt: duplicates dropped, tokens, shards, packs."""
    given = _as_overrides({"out": out, "text.source": source})
    _prepare("text", recipe, overrides, given, strict)


@group.command()
def dialogues(
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    out: Out = None,
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="file or folder of .json, .jsonl and .parquet; the recipe's `dialogues.source`",
        ),
    ] = None,
    media: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="where rows name their images; the recipe's `dialogues.media`"
        ),
    ] = None,
    tokenizer: Tokenizer = None,
    skip_bad: SkipBad = False,
) -> None:
    """Questions and answers about images and clips, as LLaVA and ShareGPT write them.

    The first row that cannot be used ends the command, unless such rows are to be set aside.
    """
    flags = {"out": out, "tokenizer": tokenizer}
    paths = _as_overrides(flags | {"dialogues.source": source, "dialogues.media": media})
    given = [*paths, *(["dialogues.skip_bad=true"] if skip_bad else [])]
    _prepare("dialogues", recipe, overrides, given, strict=False)


@group.command()
def features(
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    out: Out = None,
    source: Annotated[
        Path | None,
        typer.Option(metavar="LIST", help="Emu3's list/train.json; the recipe's `features.source`"),
    ] = None,
    skip_bad: SkipBad = False,
) -> None:
    """Emu3's own training samples: a .pth file of codes and a caption each, and their list."""
    paths = _as_overrides({"out": out, "features.source": source})
    given = [*paths, *(["features.skip_bad=true"] if skip_bad else [])]
    _prepare("features", recipe, overrides, given, strict=False)


@group.command("all")
def everything(
    recipe: OptionalRecipe = None,
    overrides: Overrides = None,
    out: Out = None,
    tokenizer: Tokenizer = None,
    strict: Strict = False,
) -> None:
    """Every kind of data that a recipe names."""
    if recipe is None or _is_override(recipe):
        raise InputError("prepare all: give a recipe")
    _prepare(None, recipe, overrides, _as_overrides({"out": out, "tokenizer": tokenizer}), strict)


def _prepare(
    kind: Kind | None,
    name: str | None,
    overrides: Sequence[str] | None,
    flags: Sequence[str],
    strict: bool,
) -> None:
    """Prepare one kind of data, or all that the recipe names; print what became of it."""
    overrides = [*(overrides or []), *flags, *(["strict=true"] if strict else [])]
    if name is not None and _is_override(name):  # no recipe: an override stands in its place
        overrides, name = [name, *overrides], None
    keys = {override.partition("=")[0] for override in overrides}
    if name is None and not {"out", f"{kind}.source"} <= keys:
        raise InputError(f"prepare {kind}: give a recipe, or --source and --out")
    recipe = load_recipe(PrepareRecipe, name, overrides)
    from emu3_megatron.prepare.pipeline import prepare, summary

    for line in summary(prepare(recipe, recipe.kinds if kind is None else [kind])):
        print(line)
    print(f"every item and its reason: {recipe.out}/KIND.parquet; emu3 inspect data {recipe.out}")
    print(f"by suffix and source, and the time of each stage: emu3 prepare --report {recipe.out}")


def _is_override(argument: str) -> bool:
    return "=" in argument and not Path(argument).is_file()


def _as_overrides(flags: Mapping[str, Path | str | None]) -> list[str]:
    """Flags as overrides of the keys that they stand for; JSON, so that YAML reads any path."""
    return [
        f"{key}={json.dumps(str(value), ensure_ascii=False)}"
        for key, value in flags.items()
        if value is not None
    ]
