"""`emu3 pack`: packs the documents of any shards into training sequences."""

from pathlib import Path
from typing import Annotated

import typer

from emu3_megatron.cli.shards import prefixes_of, vocabulary_of
from emu3_megatron.config.prepare import Select
from emu3_megatron.errors import InputError


def pack(
    shards: Annotated[
        list[str], typer.Argument(metavar="SHARD", help="shards, by path without suffix")
    ],
    out: Annotated[Path, typer.Option(metavar="NAME.pack", help="folder to write")],
    context: Annotated[int, typer.Option(min=1, metavar="TOKENS", help="tokens a sequence")],
    select: Annotated[
        Select, typer.Option(help="which documents, by layout: captioned means caption first")
    ] = "all",
    seed: Annotated[
        int, typer.Option(min=0, help="of the order of the packs, and of which documents share one")
    ] = 0,
    max_documents: Annotated[int, typer.Option(min=1, help="most documents a sequence")] = 256,
    whole_texts: Annotated[
        bool, typer.Option("--whole-texts", help="cut no text to fill a sequence")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="preset whose vocabulary the shards have, if they do not say")
    ] = None,
    relabel: Annotated[
        bool,
        typer.Option("--relabel", help="the .json of shards name another than --model's: wrongly"),
    ] = False,
) -> None:
    """Pack the documents of shards into training sequences.

    `emu3 prepare` does this for its own shards; this packs any shards in another way.
    """
    prefixes = prefixes_of(shards)
    from emu3_megatron.data.packing.packs import pack_shards
    from emu3_megatron.data.shards import writer

    vocabulary, *_ = [vocabulary_of(prefix, model) for prefix in prefixes]
    if relabel:
        if model is None:
            raise InputError("--relabel: name the model whose tokens the shards hold with --model")
        for prefix in prefixes:
            writer.relabel(prefix, vocabulary)
    report = pack_shards(
        prefixes,
        out,
        context,
        vocabulary=vocabulary,
        seed=seed,
        max_documents=max_documents,
        cut_text=not whole_texts,
        select=select,
    )
    print(report)
