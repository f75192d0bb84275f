"""`emu3 demo`: every stage on ten photos and a clip, on a CPU."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="folder to write")] = Path("demo"),
    stages: Annotated[
        Literal["first", "all"],
        typer.Option(
            help="first: photos, tokenizer, packs, pre-training; all: then stage 2, quality "
            "fine-tuning, preferences, image to text, instruction tuning, export, generation"
        ),
    ] = "first",
) -> None:
    """Every stage on ten photos and a clip, on a CPU.

    Trains a small vision tokenizer and a small decoder on photos that ship with the package, and
    leaves FOLDER/report.html: what each stage changed, and the commands that it took. FOLDER/logs
    has what they printed. A second run in the same folder starts anew.
    """
    from emu3_megatron.demo import run_demo

    run_demo(out, stages)
