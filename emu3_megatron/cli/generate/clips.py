"""`emu3 generate clip`: draws clips from captions, and continues clips."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emu3_megatron.cli.arguments import rate
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
from emu3_megatron.errors import InputError
from emu3_megatron.generation.options import EngineOptions

if TYPE_CHECKING:
    from torch import Tensor

    from emu3_megatron.grammar import Meta


def clip(
    checkpoint: CheckpointFolder,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE.mp4|FOLDER", help="clip to write, .mp4 or .gif; of several, a folder"
        ),
    ],
    caption: Caption = None,
    prompts: PromptsFile = None,
    negative: Negative = "",
    number: Number = 1,
    grid: GridOption = None,
    seconds: Annotated[float, rate("that are drawn at first")] = 5.0,
    fps: Annotated[float, rate("frames a second")] = 24.0,
    first: Annotated[
        Path | None,
        typer.Option(metavar="VIDEO", help="continue this clip, instead of drawing one at first"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=0, help="continue so often (default: 0, with --first 1)")
    ] = None,
    seen: Annotated[float, rate("seconds that each continuation goes on from")] = 2.0,
    more: Annotated[float, rate("seconds that each continuation adds")] = 2.0,
    tokenizer: TokenizerFolder = None,
    guidance: Guidance = None,
    temperature: Temperature = 1.0,
    top_k: TopK = 2048,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    batch: Batch = 1,
    context: Context = None,
    eight_bit: EightBit = False,
    speculate: Speculate = 1,
    estimate: EstimateOnly = False,
) -> None:
    """Draw clips from captions, or continue a clip.

    A continuation sees the last seconds of the clip and adds some more; several follow one another.
    """
    from emu3_megatron.generation.clips import Continuation, fps_of, latent_frames
    from emu3_megatron.generation.files.outputs import (
        batches_of,
        check_suffix,
        make_folders,
        outputs_of,
    )
    from emu3_megatron.generation.files.prompts import Defaults
    from emu3_megatron.generation.files.writing import Drawer, works_of_clips

    check_suffix(out, [".mp4", ".gif"])
    source = Checkpoint.read(checkpoint)
    settings = source.settings(guidance, temperature, top_k, top_p, seed)
    limits = source.limits(context)
    how = Continuation(seen, more)
    steps = (1 if first else 0) if steps is None else steps
    defaults = Defaults(
        lambda text: grid or source.grid(text), "clip", latent_frames(seconds, fps), fps, negative
    )
    wanted = read_captions(caption, prompts, defaults)
    limits.check_count(len(wanted) * number, "clips")
    if first and not steps:
        raise InputError("--steps 0 with --first: nothing to draw; give 1 or more")
    pixels, begun = _read(first, fps, defaults.grid(wanted[0].text)) if first else (None, None)
    outputs = outputs_of(wanted, number, seed, out, [".mp4", ".gif"])
    batches = batches_of(outputs, batch)
    works = [
        work
        for some in batches
        for work in works_of_clips(source.vocabulary, some, settings.guidance, begun, steps, how)
    ]
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
        if pixels is not None:
            drawer.continued(some, pixels, fps, steps, how)
        else:
            drawer.clips(some, steps, how)
    if mesh.is_first:
        meta = begun or outputs[0].meta
        length = 4 * (meta.frames + steps * latent_frames(more, fps_of(meta))) / fps_of(meta)
        what = f"{len(outputs):,} clips" if outputs[0].in_folder else "a clip"
        print(
            f"{out}: {what} of {length:g} s, guidance {settings.guidance:g}{accepted_part(options)}"
        )


def _read(path: Path, fps: float, grid: tuple[int, int]) -> "tuple[Tensor, Meta]":
    """The pixels of a video at the size of a grid, its own aspect kept, and its own grid."""
    from emu3_megatron.grammar import Meta
    from emu3_megatron.media.videos import read_clip
    from emu3_megatron.vision.tokenizer import SPATIAL_FACTOR, TEMPORAL_FACTOR

    pixels_tchw = read_clip(path, area=SPATIAL_FACTOR**2 * grid[0] * grid[1], fps=fps)
    frames, _, height, width = pixels_tchw.shape
    if frames < TEMPORAL_FACTOR:
        raise InputError(f"{path}: {frames} frames at {fps:g} a second, too short to go on")
    seconds = round(frames / fps, 3)
    size = (height // SPATIAL_FACTOR, width // SPATIAL_FACTOR)
    return pixels_tchw, Meta(*size, frames // TEMPORAL_FACTOR, fps, seconds)
