"""`emu3 generate caption`, `dialogue` and `text`: text about images and clips, and beside them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emu3_megatron.cli.arguments import rate, until_reader_leaves
from emu3_megatron.cli.generate.drawing import check_or_estimate
from emu3_megatron.cli.generate.showing import Asked, Showing, ask, read_rows
from emu3_megatron.cli.sampling import (
    Batch,
    Checkpoint,
    CheckpointFolder,
    Context,
    EightBit,
    EstimateOnly,
    MaxTokens,
    Seed,
    Temperature,
    TokenizerFolder,
    TopK,
    TopP,
)
from emu3_megatron.errors import InputError
from emu3_megatron.generation.options import EngineOptions
from emu3_megatron.vocabulary import SYSTEM_TEXT

if TYPE_CHECKING:
    import numpy as np

    from emu3_megatron.generation.sampling import SamplingSettings
    from emu3_megatron.parallel import Mesh

Show = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="image or video to show, once for each; it stands where the text has the next "
        "<image> or <video>, without such marks in front",
    ),
]
Area = Annotated[
    int | None,
    typer.Option(
        min=64,
        metavar="PIXELS",
        help="to show images and frames at (default: as the commonest grid of the training data, "
        "else 512 x 512 to 1024 x 1024, as Emu3's image processor)",
    ),
]
Fps = Annotated[float, rate("frames a second that videos are read at")]
Frames = Annotated[int, typer.Option(min=4, help="of a video at most; then fewer a second")]
Lines = Annotated[
    Path | None, typer.Option(metavar="FILE.jsonl", help="write lines of JSON instead of printing")
]


def caption(
    checkpoint: CheckpointFolder,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="images and videos")],
    out: Lines = None,
    area: Area = None,
    fps: Fps = 4.0,
    frames: Frames = 32,
    tokenizer: TokenizerFolder = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 2048,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    max_tokens: MaxTokens = None,
    batch: Batch = 8,
    context: Context = None,
    eight_bit: EightBit = False,
    estimate: EstimateOnly = False,
) -> None:
    """Describe images and videos, each by itself."""
    source = Checkpoint.read(checkpoint)
    settings = source.settings(1.0, temperature, top_k, top_p, seed)
    options = EngineOptions(eight_bit)
    from emu3_megatron.grammar import open_prompt

    mesh = source.start()
    shown = Showing(source, tokenizer, area, fps, frames).encode(files)
    prompts = [open_prompt(source.vocabulary, [vision]) for vision in shown]
    names = list(map(str, files))
    said = _say(
        source, mesh, prompts, names, settings, max_tokens, batch, context, options, estimate
    )
    rows = [{"file": name, "caption": text} for name, text in zip(names, said, strict=True)]
    if mesh.is_first:
        _tell(rows, [f"{row['file']}: {row['caption']}" for row in rows], out)


def dialogue(
    checkpoint: CheckpointFolder,
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", show_default=False, help="to answer")
    ] = None,
    show: Show = None,
    rows: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="in place of a question: dialogues as emu3 prepare dialogues reads them, whose "
            "last turn is the user's",
        ),
    ] = None,
    media: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="in which rows name their images (default: theirs)"),
    ] = None,
    out: Lines = None,
    area: Area = None,
    fps: Fps = 4.0,
    frames: Frames = 32,
    tokenizer: TokenizerFolder = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 2048,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    max_tokens: MaxTokens = None,
    batch: Batch = 8,
    context: Context = None,
    eight_bit: EightBit = False,
    estimate: EstimateOnly = False,
) -> None:
    """Answer questions about images and videos.

    The template is Emu3-Chat's.
    """
    asked = _asked(question, show or [], rows, media)
    source = Checkpoint.read(checkpoint)
    settings = source.settings(1.0, temperature, top_k, top_p, seed)
    options = EngineOptions(eight_bit)
    from emu3_megatron import grammar

    mesh = source.start()
    showing = Showing(source, tokenizer, area, fps, frames)
    prompts = [
        grammar.dialogue(
            source.vocabulary, showing.turns(one), one.dialogue.system or SYSTEM_TEXT
        ).tokens
        for one in asked
    ]
    names = [one.name for one in asked]
    said = _say(
        source, mesh, prompts, names, settings, max_tokens, batch, context, options, estimate
    )
    if mesh.is_first:
        _tell([{**o.row, "answer": text} for o, text in zip(asked, said, strict=True)], said, out)


def text(
    checkpoint: CheckpointFolder,
    prompt: Annotated[
        str,
        typer.Argument(metavar="PROMPT", show_default=False, help="that the text begins with"),
    ] = "",
    show: Show = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="let the model draw images where it begins them, and write document.md with them; "
            "without it the text ends there",
        ),
    ] = None,
    area: Area = None,
    fps: Fps = 4.0,
    frames: Frames = 32,
    tokenizer: TokenizerFolder = None,
    temperature: Temperature = 1.0,
    top_k: TopK = 2048,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    max_tokens: MaxTokens = None,
    context: Context = None,
    eight_bit: EightBit = False,
    estimate: EstimateOnly = False,
) -> None:
    """Continue text, with images in it.

    Images and videos may stand in the prompt, and with --out images in the text that follows.
    """
    source = Checkpoint.read(checkpoint)
    settings = source.settings(1.0, temperature, top_k, top_p, seed)
    options = EngineOptions(eight_bit)
    from emu3_megatron.generation.interleaved import continue_documents, write_markdown
    from emu3_megatron.grammar import open_prompt
    from emu3_megatron.parallel.votes import on_first_rank

    mesh = source.start()
    showing = Showing(source, tokenizer, area, fps, frames)
    given = [part for turn in showing.turns(ask(prompt, show or [])) for part in turn.question]
    tokens = open_prompt(source.vocabulary, given)
    if out is None:
        names = [repr(prompt[:40])]
        said = _say(
            source, mesh, [tokens], names, settings, max_tokens, 1, context, options, estimate
        )
        if mesh.is_first:
            _tell([], said, None)
        return
    most = _check(source, [tokens], [repr(prompt[:40])], max_tokens, 1, context, options, estimate)
    network = source.tokenizer(tokenizer)
    (drawn,) = continue_documents(
        source.open(mesh),
        source.vocabulary,
        [given],
        settings,
        max_tokens=most,
        progress=mesh.is_first,
        options=options,
    )
    path = on_first_rank(lambda: write_markdown(network, [*given, *drawn.parts], out))
    if mesh.is_first:
        end = "" if drawn.is_whole else f"; it ends after --max-tokens {most}"
        print(f"{path}: {sum(not isinstance(part, str) for part in drawn.parts)} images drawn{end}")


def _asked(
    question: str | None, show: Sequence[Path], rows: Path | None, media: Path | None
) -> list[Asked]:
    if rows is not None and question is None and not show:
        return read_rows(rows, media)
    if question is not None and rows is None:
        return [ask(question, show)]
    raise InputError("give a question, with --show for what it is about, or --rows alone")


def _check(
    source: Checkpoint,
    prompts: "Sequence[np.ndarray]",
    names: Sequence[str],
    max_tokens: int | None,
    batch: int,
    context: int | None,
    options: EngineOptions,
    estimate: bool,
) -> int:
    """Refuse what does not fit; the tokens that each text may have."""
    from emu3_megatron.generation.answers import MAX_TOKENS
    from emu3_megatron.generation.estimate import Work

    limits = source.limits(context)
    limits.check_count(len(prompts), "texts")
    longest = max(map(len, prompts))
    most = max_tokens or max(1, min(MAX_TOKENS, limits.context - longest))
    works = [
        Work.of_text(len(prompt), most, name) for prompt, name in zip(prompts, names, strict=True)
    ]
    batches = [works[i : i + batch] for i in range(0, len(works), batch)]
    check_or_estimate(source, batches, limits, options, estimate)
    return most


def _say(
    source: Checkpoint,
    mesh: "Mesh",
    prompts: "Sequence[np.ndarray]",
    names: Sequence[str],
    settings: "SamplingSettings",
    max_tokens: int | None,
    batch: int,
    context: int | None,
    options: EngineOptions,
    estimate: bool,
) -> list[str]:
    """Texts behind prompts, drawn batch by batch."""
    from dataclasses import replace

    from emu3_megatron.generation.answers import say

    most = _check(source, prompts, names, max_tokens, batch, context, options, estimate)
    decoder, said = source.open(mesh), []
    for i in range(0, len(prompts), batch):
        said += say(
            decoder,
            source.vocabulary,
            prompts[i : i + batch],
            replace(settings, seed=settings.seed + i),
            max_tokens=most,
            progress=mesh.is_first,
            options=options,
        )
    return said


def _tell(rows: Sequence[dict[str, Any]], lines: Sequence[str], out: Path | None) -> None:
    """Print lines, or write the rows to a file."""
    from emu3_megatron.files import replacing

    if out is None:
        with until_reader_leaves():
            print("\n".join(lines))
        return
    with replacing(out) as beside:
        beside.write_text(
            "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8"
        )
    print(f"{out}: {len(rows):,} lines")
