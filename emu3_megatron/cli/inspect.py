"""`emu3 inspect`: the documents of a step, a profile, and a page on prepared data."""

import json
from pathlib import Path
from typing import Annotated

import typer

from emu3_megatron.cli.arguments import new_group, until_reader_leaves
from emu3_megatron.config import Recipe
from emu3_megatron.config.load import saved_recipe
from emu3_megatron.errors import InputError

group = new_group(help="Look into a training run, or into prepared data.")


@group.command()
def batch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the run's folder: recipe's run.dir")],
    step: Annotated[int, typer.Option(min=1, help="number of the step")],
) -> None:
    """The documents that a step of a run trained on, by shard and number."""
    with until_reader_leaves():
        print("\n".join(_documents(run, step)))


def _documents(folder: Path, step: int) -> list[str]:
    from emu3_megatron.config.data import MixtureConfig
    from emu3_megatron.data.mixed import MixtureData
    from emu3_megatron.data.setting import Setting
    from emu3_megatron.data.steps import documents_of_step

    try:
        description = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: no run here, run.json is missing") from None
    if "data" not in description:
        raise InputError(f"{folder}: a run of an earlier version; its batches cannot be inspected")
    recipe = saved_recipe(Recipe, description["recipe"], folder / "run.json")
    if not isinstance(recipe.data, MixtureConfig):
        raise InputError(f"{folder}: its data is of kind {recipe.data.kind}, and not a mixture")
    setting = Setting(recipe.model.vocabulary(), recipe.batch, recipe.run.seed, weights={})
    data = MixtureData(recipe.data, setting)
    data.load_state_dict(description["data"])
    return list(documents_of_step(data, step))


@group.command()
def profile(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="RUN/profiles/step-…: .json.gz, or .pickle")
    ],
) -> None:
    """Open a profile that `run.profile` wrote: a trace in Perfetto, a memory snapshot as a page."""
    from emu3_megatron.cli.profile import show, write_memory_page

    if not file.is_file():
        raise InputError(f"{file}: no such profile; a run with run.profile writes profiles/step-…")
    if file.suffix == ".pickle":
        print(f"open {write_memory_page(file)}")
    else:
        show(file)


@group.command()
def data(
    folder: Annotated[Path, typer.Argument(metavar="DATA", help="the `out` of a prepare recipe")],
    out: Annotated[Path, typer.Option(metavar="PAGE", help="HTML page to write")] = Path(
        "data.html"
    ),
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="of the vision tokenizer; shows images as decoded"),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="samples of each kind")] = 24,
) -> None:
    """An HTML page of samples, of what was set aside and why, and of histograms."""
    from emu3_megatron.prepare.inspecting import write_page
    from emu3_megatron.vision.tokenizer import VisionTokenizer

    write_page(folder, out, VisionTokenizer.load(tokenizer) if tokenizer else None, samples)
    print(f"open {out}")
