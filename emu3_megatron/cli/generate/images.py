"""`emu3 generate image`: draws images from captions."""

from pathlib import Path
from typing import Annotated

import typer

from emu3_megatron.cli.generate.drawing import (
    Caption,
    Negative,
    Number,
    PromptsFile,
    accepted_part,
    check_or_estimate,
    read_captions,
)
from emu3_megatron.cli.sampling import (
    Batch,
    Checkpoint,
    CheckpointFolder,
    Context,
    EightBit,
    EstimateOnly,
    GridOption,
    Guidance,
    Seed,
    Speculate,
    Temperature,
    TokenizerFolder,
    TopK,
    TopP,
)
from emu3_megatron.generation.options import EngineOptions


def image(
    checkpoint: CheckpointFolder,
    out: Annotated[
        Path, typer.Option(metavar="FILE.png|FOLDER", help="image to write; of several, a folder")
    ],
    caption: Caption = None,
    prompts: PromptsFile = None,
    negative: Negative = "",
    number: Number = 1,
    grid: GridOption = None,
    tokenizer: TokenizerFolder = None,
    guidance: Guidance = None,
    temperature: Temperature = 1.0,
    top_k: TopK = 2048,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    batch: Batch = 8,
    context: Context = None,
    eight_bit: EightBit = False,
    speculate: Speculate = 1,
    preview: Annotated[
        bool,
        typer.Option("--preview", help="meanwhile write finished rows as FILE.preview.png"),
    ] = False,
    estimate: EstimateOnly = False,
) -> None:
    """Draw images from captions."""
    from emu3_megatron.generation.files.outputs import (
        batches_of,
        check_suffix,
        make_folders,
        outputs_of,
    )
    from emu3_megatron.generation.files.prompts import Defaults
    from emu3_megatron.generation.files.writing import Drawer, work_of

    check_suffix(out, [".png"])
    source = Checkpoint.read(checkpoint)
    settings = source.settings(guidance, temperature, top_k, top_p, seed)
    limits = source.limits(context)
    defaults = Defaults(lambda text: grid or source.grid(text), "image", negative=negative)
    wanted = read_captions(caption, prompts, defaults)
    limits.check_count(len(wanted) * number, "images")
    outputs = outputs_of(wanted, number, seed, out, [".png"])
    batches = batches_of(outputs, batch)
    works = [[work_of(source.vocabulary, j, settings.guidance) for j in some] for some in batches]
    options = EngineOptions(eight_bit, speculate)
    check_or_estimate(source, works, limits, options, estimate)
    make_folders(outputs)
    network = source.tokenizer(tokenizer)
    mesh = source.start()
    drawer = Drawer(
        source.open(mesh),
        source.vocabulary,
        network,
        settings,
        str(checkpoint),
        quiet=not mesh.is_first,
        options=options,
    )
    for some in batches:
        drawer.images(some, preview)
    if mesh.is_first:
        size = f"{8 * outputs[0].meta.width} x {8 * outputs[0].meta.height} pixels, "
        what = f"{len(outputs):,} images" if outputs[0].in_folder else size.removesuffix(", ")
        print(f"{out}: {what}, guidance {settings.guidance:g}{accepted_part(options)}")
