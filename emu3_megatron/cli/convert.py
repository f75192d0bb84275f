"""`emu3 convert`: weights of Hugging Face and of Megatron-LM in and out."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from emu3_megatron.cli.arguments import RanksFile, new_group
from emu3_megatron.errors import InputError

group = new_group(help="Weights of Hugging Face and Megatron-LM to ours, and back.")

Target = Annotated[Path, typer.Option("--to", metavar="FOLDER", help="folder to make")]


@group.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Option(
            "--from", metavar="FOLDER", help="weights of Hugging Face, Megatron-LM or MoVQGAN"
        ),
    ],
    target: Target,
    tensor: Annotated[
        int,
        typer.Option(
            min=1,
            help="refuse a decoder that does not divide over so many tensor parallel ranks; "
            "what is written opens on any number that does",
        ),
    ] = 1,
    ranks_file: RanksFile = None,
    model: Annotated[
        str | None,
        typer.Option(help="preset whose vocabulary a Megatron-LM checkpoint has, if it is unclear"),
    ] = None,
) -> None:
    """BAAI's, transformers', Megatron-LM's or MoVQGAN's weights to a checkpoint or a tokenizer."""
    from emu3_megatron.interchange.importing import import_folder

    _start_alone()
    print("\n".join(import_folder(source, target, tensor, ranks_file, model)))


@group.command()
def export(
    source: Annotated[
        Path, typer.Option("--from", metavar="FOLDER", help="run, checkpoint or vision tokenizer")
    ],
    target: Target,
    layout: Annotated[
        Literal["transformers", "baai", "hub", "megatron", "megatron-file"],
        typer.Option(
            help="whose names the tensors get; hub: transformers before 4.52; megatron: "
            "Megatron-LM's torch_dist; megatron-file: one file of torch.save"
        ),
    ] = "transformers",
    tokenizer: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="vision tokenizer to put beside the decoder"),
    ] = None,
    ranks_file: RanksFile = None,
    tensor: Annotated[
        int,
        typer.Option(
            min=1, help="of Megatron-LM's layouts: tensor parallel ranks that will load it"
        ),
    ] = 1,
) -> None:
    """Our weights to a folder that transformers or Megatron-LM loads."""
    from emu3_megatron.interchange.exporting import export_folder

    _start_alone()
    written = export_folder(source, target, layout, tokenizer, ranks_file, tensor=tensor)
    print("\n".join(written))


@group.command()
def average(
    source: Annotated[Path, typer.Option("--from", metavar="FOLDER", help="run or checkpoint")],
    target: Target,
) -> None:
    """The moving average that a run keeps of its weights to a checkpoint of its own."""
    from emu3_megatron.interchange.averaging import write_average

    _start_alone()
    print(write_average(source, target))


@group.command()
def verify(
    hf: Annotated[Path, typer.Option(metavar="FOLDER", help="folder of Hugging Face")],
    checkpoint: Annotated[
        Path, typer.Option(metavar="FOLDER", help="run, checkpoint or vision tokenizer")
    ],
) -> None:
    """Compare transformers' model with ours on random input, in fp32."""
    from emu3_megatron.interchange.verify import verify

    _start_alone()
    print("\n".join(verify(hf, checkpoint)))


def _start_alone() -> None:
    """Megatron's groups over this one process."""
    from emu3_megatron import parallel

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError("emu3 convert: runs in one process; start it without torchrun")
    parallel.start().seed(0, 0)
