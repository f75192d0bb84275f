"""`emu3 check`: what a file or folder is, and whether it is whole."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from tqdm import tqdm

from emu3_megatron import manifest
from emu3_megatron.cli.accelerators import accelerators
from emu3_megatron.cli.kinds import KINDS, TRACKER, Kind, kind_of, kinds_inside
from emu3_megatron.cli.shards import prefix_of, vocabulary_of
from emu3_megatron.config import Recipe
from emu3_megatron.config.load import load_recipe, read_recipe
from emu3_megatron.config.presets import PRESETS
from emu3_megatron.config.schemas import schema_of
from emu3_megatron.errors import InputError

_AT_ONCE = 16  # files of a checkpoint hashed between two moves of the progress bar


def check(
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="PATH",
            show_default=False,
            help=f"{', '.join(KINDS)}; without it, the installation",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="preset whose vocabulary a shard or packs have, if they do not say"),
    ] = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="of prepared data: read and parse every document")
    ] = False,
) -> None:
    """What a file or folder is, and whether it is whole.

    Of a checkpoint, the size and SHA-256 of every file are compared with its manifest; a run's
    newest checkpoint stands for the run. Nothing is changed.
    """
    if path is None:
        from emu3_megatron.cli.installation import report

        for line in report():
            print(line)
        return
    kind = kind_of(path)
    if kind is None:
        raise InputError(f"{path}: {_what_instead(Path(path))}")
    print(CHECKERS[kind](path, model, deep), "(valid)")


def _what_instead(path: Path) -> str:
    if path.is_file() and (kind := kind_of(path.parent)):
        return f"a file of {path.parent} ({kind}); name that folder"
    if path.is_dir() and path.name.startswith(".step-"):
        return "a checkpoint that was not written to its end; name another"
    if (path / ".work" / "settings.json").is_file():
        return "samples that are not drawn to the end; run emu3 preferences sample again"
    if path.is_dir() and (shards := sorted(path.glob("*.idx"))):
        return f"a folder of {len(shards)} shards; name one, such as {shards[0].with_suffix('')}"
    inside = [f"{found.name} ({kind})" for found, kind in kinds_inside(path)]
    if inside:
        return f"emu3 wrote no such folder; inside it are {', '.join(inside)}; name one of these"
    what = "nothing that emu3 reads or writes" if path.exists() else "no such file or folder"
    return f"{what}; name one of: {', '.join(KINDS)}"


def _check_recipe(name: str, model: str | None, deep: bool) -> str:
    recipe = load_recipe(schema_of(read_recipe(name)), name)
    lines = accelerators(recipe) if isinstance(recipe, Recipe) else ()
    return "\n".join([*lines, f"{name}: a recipe"])


def _check_shard(path: str, model: str | None, deep: bool) -> str:
    from emu3_megatron.data.check import check

    prefix = prefix_of(path)
    return check(prefix, vocabulary_of(prefix, model), deep=True)


def _check_prepared(path: str, model: str | None, deep: bool) -> str:
    from emu3_megatron.prepare.checking import check_prepared

    return check_prepared(Path(path), deep)


def _check_samples(path: str, model: str | None, deep: bool) -> str:
    from emu3_megatron.alignment.checking import check_samples

    return check_samples(Path(path))


def _check_columns(path: str, model: str | None, deep: bool) -> str:
    about, size = _check_files(Path(path), "make them again with emu3 reference")
    rows = sum(source["rows"] for source in about["sources"].values())
    return (
        f"{path}: column {about['column']} of {rows:,} rows of {len(about['sources'])} sources, "
        f"by the checkpoint of step {about['checkpoint']['step']:,} in {about['precision']}; "
        f"{size:,} bytes"
    )


def _check_files(folder: Path, otherwise: str) -> tuple[dict[str, Any], int]:
    """What a manifest says, once its files are what it says, and their bytes."""
    about = manifest.read(folder)
    names = iter(tqdm(about["files"], desc="files", disable=None))
    while some := list(itertools.islice(names, _AT_ONCE)):
        if fault := manifest.first_fault(folder, some, about["files"]):
            raise InputError(f"{fault}; copy it again, or {otherwise}")
    return about, sum(file["bytes"] for file in about["files"].values())


def _check_checkpoint(path: str, model: str | None, deep: bool) -> str:
    about, size = _check_files(Path(path), "use another checkpoint")
    return (
        f"{path}: checkpoint of step {about['step']:,}, {_contents(about)}; "
        f"{len(about['files'])} files, {size:,} bytes"
    )


def _contents(about: dict[str, Any]) -> str:
    """What a checkpoint holds, by its manifest."""
    recipe = about["recipe"]
    if "network" in recipe:
        return f"the training of a vision tokenizer of {recipe['network']['codebook_size']:,} codes"
    model = recipe["model"]
    name = model.get("preset")
    preset = f"{name}, " if name in PRESETS and PRESETS[name].items() <= model.items() else ""
    origin = f", imported from {about['imported_from']}" if "imported_from" in about else ""
    return (
        f"a decoder ({preset}{model['layers']} layers of {model['hidden']:,}, "
        f"{recipe['precision']}){origin}"
    )


def _check_newest(path: str, model: str | None, deep: bool) -> str:
    """A folder of checkpoints: the newest stands for it."""
    newest = Path(path) / (Path(path) / TRACKER).read_text(encoding="utf-8").strip()
    return _check_checkpoint(str(newest), model, deep)


def _check_run(path: str, model: str | None, deep: bool) -> str:
    """What a run saved, and the vision tokenizer beside it where weights were imported."""
    parts = (str(Path(path) / name) for name in ("checkpoints", "tokenizer"))
    kinds = {part: kind for part in parts if (kind := kind_of(part))}
    if not kinds:
        return f"{path}: a run that saved no checkpoint yet"
    return "\n".join(CHECKERS[kind](part, model, deep) for part, kind in kinds.items())


def _check_tokenizer(path: str, model: str | None, deep: bool) -> str:
    from emu3_megatron.vision.tokenizer import VisionTokenizer

    network = VisionTokenizer.load(path)
    parameters = sum(weight.numel() for weight in network.parameters())
    codes = network.network.codebook_size
    return f"{path}: a vision tokenizer of {codes:,} codes, {parameters:,} parameters"


def _check_tokenizer_run(path: str, model: str | None, deep: bool) -> str:
    return _check_tokenizer(str(Path(path) / "tokenizer"), model, deep)


def _check_hugging_face(path: str, model: str | None, deep: bool) -> str:
    from emu3_megatron.interchange.layouts import find_decoder, find_vision
    from emu3_megatron.interchange.weights import Weights

    names = Weights(Path(path)).specs
    found = {"a decoder": find_decoder(names), "a vision tokenizer": find_vision(names)}
    models = [what for what, layout in found.items() if layout]
    if not models:
        raise InputError(f"{path}: Hugging Face weights, but not of Emu3")
    return (
        f"{path}: Hugging Face weights of {' and '.join(models)}, {len(names)} tensors by the "
        "headers of their files"
    )


CHECKERS: dict[Kind, Callable[[str, str | None, bool], str]] = {
    "recipe": _check_recipe,
    "shard": _check_shard,
    "packs": _check_shard,
    "prepared data": _check_prepared,
    "samples": _check_samples,
    "columns": _check_columns,
    "checkpoint": _check_checkpoint,
    "folder of checkpoints": _check_newest,
    "run": _check_run,
    "vision tokenizer": _check_tokenizer,
    "run of the vision tokenizer": _check_tokenizer_run,
    "Hugging Face weights": _check_hugging_face,
}
