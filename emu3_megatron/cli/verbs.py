"""What the verbs of the command line do: each puts rooms together and says how it went.

Rooms that import torch and Megatron-core are imported by the verb that needs them, once its recipe
has been read: a wrong key is answered at once.
"""

import json
import os
from pathlib import Path
from typing import Any

from emu3_megatron.config import ModelConfig, Recipe, load_recipe
from emu3_megatron.config.base import Config
from emu3_megatron.config.load import read_recipe, shipped_recipes
from emu3_megatron.config.presets import PRESETS
from emu3_megatron.config.tokenizer import TokenizerRecipe
from emu3_megatron.config.training import DecoderRecipe
from emu3_megatron.errors import InputError
from emu3_megatron.vocabulary import Vocabulary


def train(name: str, overrides: list[str], accept: bool = False) -> None:
    recipe = load_recipe(Recipe, name, overrides)
    from emu3_megatron.cli.train import run_training

    run_training(recipe, accept)


def train_tokenizer(name: str, overrides: list[str], out: Path) -> None:
    recipe = load_recipe(TokenizerRecipe, name, overrides)
    import torch

    from emu3_megatron.tokenizer_training.trainer import train_tokenizer

    train_tokenizer(recipe, out, "cuda" if torch.cuda.is_available() else "cpu")
    print(f"tokenizer: {out / 'tokenizer'}")


def prepare(kind: str, name: str | None, overrides: list[str], flags: dict[str, Any]) -> None:
    """Prepare one kind of data, or all that the recipe names; and say what became of it.

    Args:
        kind: `images`, `clips`, `text` or `all`.
        name: of the recipe; the defaults alone without it.
        flags: values of keys of the recipe, where they are given.
    """
    from emu3_megatron.config.prepare import PrepareRecipe

    if name and "=" in name:  # no recipe: the first override stands in its place
        overrides, name = [name, *overrides], None
    quoted = {key: json.dumps(value, ensure_ascii=False) for key, value in flags.items() if value}
    given = [f"{key}={value}" for key, value in quoted.items()]
    if name is None and kind == "all":
        raise InputError("prepare all: give a recipe")
    if name is None and None in (flags["out"], flags[f"{kind}.source"]):
        raise InputError(f"prepare {kind}: give a recipe, or --source and --out")
    recipe = load_recipe(PrepareRecipe, name, [*overrides, *given])
    from emu3_megatron.prepare.pipeline import prepare, summary

    for line in summary(prepare(recipe, recipe.kinds if kind == "all" else [kind])):  # type: ignore[list-item]
        print(line)
    print(f"every item and its reason: {recipe.out}/KIND.parquet; emu3 inspect data {recipe.out}")


def inspect_data(folder: Path, page: Path, tokenizer: Path | None, samples: int) -> None:
    """Write a page on prepared data."""
    from emu3_megatron.prepare.inspecting import write_page
    from emu3_megatron.vision.tokenizer import VisionTokenizer

    write_page(folder, page, VisionTokenizer.load(tokenizer) if tokenizer else None, samples)
    print(f"open {page}")


def preset_vocabulary(model: str, ranks_file: Path | None = None) -> Vocabulary:
    """The vocabulary of a model preset."""
    if model not in PRESETS:
        raise InputError(f"--model {model}: no such preset; choose one of {', '.join(PRESETS)}")
    return ModelConfig.model_validate({"preset": model, "ranks_file": ranks_file}).vocabulary()


def pack(shards: list[str], out: Path, context: int, model: str | None, **settings: Any) -> None:
    from emu3_megatron.data.packing.packs import pack_shards

    prefixes = [_prefix(shard) for shard in shards]
    vocabulary = _vocabulary_of(prefixes[0], model)
    print(pack_shards(prefixes, out, context, vocabulary=vocabulary, **settings))


def check(path: str | None, model: str | None, deep: bool = False) -> None:
    """Read a shard or packs from end to end, or a recipe, and say what is there."""
    if path is None:
        from emu3_megatron.cli.installation import report

        for line in report():
            print(line)
        return
    if path.endswith((".yaml", ".yml")) or path in shipped_recipes():
        _check_recipe(path)
        return
    if (Path(path) / "manifest.json").is_file():
        from emu3_megatron.prepare.checking import check_prepared

        print(check_prepared(Path(path), deep), "(sound)")
        return
    from emu3_megatron.data.check import check

    path = _prefix(path)
    print(check(path, _vocabulary_of(path, model), deep=True), "(sound)")


def _check_recipe(name: str) -> None:
    from emu3_megatron.config.prepare import PrepareRecipe

    values = read_recipe(name)
    schema: type[Config] = Recipe
    if "network" in values:
        schema = TokenizerRecipe
    elif "out" in values:
        schema = PrepareRecipe
    load_recipe(schema, name)
    print(f"{name}: a sound recipe")


def _prefix(path: str) -> str:
    """A shard may be named by any of its files."""
    suffixes = (".bin", ".idx", ".json")
    return str(Path(path).with_suffix("")) if path.endswith(suffixes) else path


def _vocabulary_of(path: str, model: str | None) -> Vocabulary:
    """The vocabulary that --model names, or else the preset's that the shard or pack tells of."""
    from emu3_megatron.data.check import vocabulary_fingerprint

    if model:
        return preset_vocabulary(model)
    fingerprint = vocabulary_fingerprint(path)
    for preset in PRESETS:
        vocabulary = preset_vocabulary(preset)
        if fingerprint in (None, vocabulary.fingerprint()):
            return vocabulary
    raise InputError(f"{path}: of no preset's vocabulary; name its model with --model")


def inspect_batch(folder: Path, step: int) -> None:
    """Print the documents of a step of a run."""
    from emu3_megatron.config.data import MixtureConfig
    from emu3_megatron.data.mixed import MixtureData
    from emu3_megatron.data.setting import Setting
    from emu3_megatron.data.steps import documents_of_step

    try:
        description = json.loads((folder / "run.json").read_text())
    except FileNotFoundError:
        raise InputError(f"{folder}: no run here, run.json is missing") from None
    recipe = Recipe.model_validate(description["recipe"])
    if not isinstance(recipe.data, MixtureConfig):
        raise InputError(f"{folder}: its data is of kind {recipe.data.kind}, and not a mixture")
    setting = Setting(recipe.model.vocabulary(), recipe.batch, recipe.run.seed, weights={})
    data = MixtureData(recipe.data, setting)
    data.load_state_dict(description["data"])
    print("\n".join(documents_of_step(data, step)))


def status(folder: Path) -> None:
    from emu3_megatron.runs.status import status

    print("\n".join(status(folder)))


def generate(
    checkpoint: Path,
    prompt: str,
    out: Path,
    tokenizer: Path | None,
    grid: tuple[int, int] | None,
    **settings: Any,
) -> None:
    """Draw one image; all processes of a torchrun share the decoder."""
    from emu3_megatron import parallel
    from emu3_megatron.generation.images import generate_images, save_image
    from emu3_megatron.generation.sampling import SamplingSettings
    from emu3_megatron.model.opening import open_decoder
    from emu3_megatron.vision.tokenizer import VisionTokenizer

    if out.suffix != ".png":
        raise InputError(f"--out {out}: name a file that ends in .png")
    mesh = parallel.start(tensor=int(os.environ.get("WORLD_SIZE", 1)))
    mesh.seed(0, 0)
    decoder, recipe = open_decoder(checkpoint, mesh)
    network = VisionTokenizer.load(tokenizer or _sampling_tokenizer(recipe, checkpoint))
    height, width = grid or _sampling_grid(recipe, prompt)
    drawn = generate_images(
        decoder,
        recipe.model.vocabulary(),
        [prompt],
        height,
        width,
        SamplingSettings(**settings),
        progress=mesh.is_first,
    )
    if mesh.is_first:
        save_image(network, drawn[0], out)
        print(f"{out}: {8 * width} x {8 * height} pixels")


def _sampling_tokenizer(recipe: DecoderRecipe, checkpoint: Path) -> Path:
    if recipe.sample is None:
        raise InputError(f"{checkpoint}: its recipe names no vision tokenizer; give --tokenizer")
    return recipe.sample.tokenizer


def _sampling_grid(recipe: DecoderRecipe, prompt: str) -> tuple[int, int]:
    """The grid that the recipe draws this caption on, or its first; Emu3's own without any."""
    if recipe.sample is None:
        return 90, 90
    prompts = recipe.sample.prompts
    known = next((p for p in prompts if p.caption == prompt), prompts[0])
    return known.height, known.width


def convert_import(source: Path, target: Path, tensor: int, ranks_file: Path | None) -> None:
    from emu3_megatron.interchange.importing import import_folder

    _start_alone()
    print("\n".join(import_folder(source, target, tensor, ranks_file)))


def convert_export(
    source: Path, target: Path, layout: str, tokenizer: Path | None, ranks_file: Path | None
) -> None:
    from emu3_megatron.interchange.exporting import export_folder

    _start_alone()
    print("\n".join(export_folder(source, target, layout, tokenizer, ranks_file)))


def convert_verify(folder: Path, checkpoint: Path) -> None:
    from emu3_megatron.interchange.verify import verify

    _start_alone()
    print("\n".join(verify(folder, checkpoint)))


def _start_alone() -> None:
    """Megatron's groups over this one process."""
    from emu3_megatron import parallel

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("emu3 convert: runs in one process; start it without torchrun")
    parallel.start().seed(0, 0)
