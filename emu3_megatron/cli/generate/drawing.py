"""What `emu3 generate image` and `emu3 generate clip` share."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emu3_megatron.cli.sampling import Checkpoint, tensor_size
from emu3_megatron.errors import InputError
from emu3_megatron.generation.options import EngineOptions

if TYPE_CHECKING:
    from emu3_megatron.generation.estimate import Work
    from emu3_megatron.generation.files.prompts import Defaults, Prompt
    from emu3_megatron.generation.limits import Limits

Caption = Annotated[
    str | None, typer.Argument(metavar="CAPTION", show_default=False, help="what it shows")
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="in place of a caption: a .txt file with one a line, or a .jsonl file: prompt, "
        "negative, seed, height, width; of clips also frames (latent) and fps",
    ),
]
Negative = Annotated[str, typer.Option(help="caption that guidance leads away from")]
Number = Annotated[
    int,
    typer.Option("--number", "-n", min=1, help="of each caption, with seeds one after another"),
]


def read_captions(caption: str | None, file: Path | None, defaults: "Defaults") -> "list[Prompt]":
    """The one caption, or those of a file; raises InputError unless there is one of both."""
    from emu3_megatron.generation.files.prompts import prompt_of, read_prompts

    if (caption is None) == (file is None):
        raise InputError("give a caption, or --prompts with a file of them")
    if caption is not None:
        return [prompt_of({"prompt": caption}, defaults, "the caption")]
    assert file is not None
    prompts = read_prompts(file, defaults)
    for prompt in prompts:
        if prompt.kind != defaults.kind:
            raise InputError(
                f"{file}: {prompt.text[:40]!r} asks for kind {prompt.kind}; put it into a file for "
                f"another command than emu3 generate {defaults.kind}"
            )
    return prompts


def accepted_part(options: EngineOptions) -> str:
    """Of a line about what was made: what guesses brought."""
    if options.speculate == 1:
        return ""
    return f", {options.accepted.per_call:.2f} tokens a call with guesses"


def check_or_estimate(
    source: Checkpoint,
    works: "Sequence[Sequence[Work]]",
    limits: "Limits",
    options: EngineOptions,
    only: bool,
) -> None:
    """Refuse what does not fit; with `only`, print the estimate first, and end.

    Args:
        works: one batch after another.
    """
    from emu3_megatron.generation.estimate import estimate, measure_bandwidth
    from emu3_megatron.generation.limits import describe

    model, precision = source.recipe.model, source.recipe.precision
    needed = estimate(model, precision, works, tensor_size(), options)
    if only and os.environ.get("RANK", "0") == "0":
        bandwidth = measure_bandwidth(source.device)
        print("\n".join(describe(needed, bandwidth, limits.memory)))
    for batch in works:
        for work in batch:
            limits.check_length(work)
    limits.check_memory(needed)
    if only:
        raise typer.Exit
