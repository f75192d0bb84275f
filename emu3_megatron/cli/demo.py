"""`emu3 demo`: every stage on ten photos and a clip, on a CPU."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="folder to write")] = Path("demo"),
) -> None:
    """Every stage on ten photos and a clip, on a CPU.

    Trains a small vision tokenizer and a small decoder on photos that ship with the package, and
    leaves FOLDER/report.html: what the tokenizer keeps of the photos, and what the decoder draws
    from their captions. A second run in the same folder starts anew.
    """
    from emu3_megatron.demo import run_demo

    run_demo(out)
