"""`emu3 preferences`: samples of a checkpoint, votes on them, and pairs for DPO."""

from pathlib import Path
from typing import Annotated

import typer

from emu3_megatron.cli.arguments import new_group

group = new_group(
    help="Samples of a checkpoint, votes on them, pairs for DPO.\n\n"
    "`sample` draws several images, clips or answers a prompt; `vote` serves a page on which "
    "people pick the best and the worst, `import` takes votes of other tools; `build` writes pairs."
)

Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="what emu3 preferences sample wrote")
]


@group.command()
def build(
    folder: Folder,
    out: Annotated[
        Path, typer.Option(metavar="PREFIX", help="shard to write, by path without suffix")
    ],
    margin: Annotated[
        float,
        typer.Option(
            help="least difference between the mean scores of best and worst; a prompt with less "
            "gives no pair. A voter's best scores 1, the worst -1"
        ),
    ] = 1.0,
    held_out: Annotated[
        float,
        typer.Option(metavar="SHARE", help="of the pairs, into a second shard for validation"),
    ] = 0.0,
) -> None:
    """Of each prompt the best sample against the worst: a shard of pairs, for emu3 pack.

    The tokens are those that were drawn. PREFIX.pairs.jsonl says where each pair comes from.
    """
    from emu3_megatron.alignment import pairs

    report = pairs.build(folder, out, margin, held_out)
    print(f"{out}: {len(report.pairs):,} pairs")
    if report.held_out:
        print(f"{out}{pairs.HELD_OUT}: {len(report.held_out):,} pairs")
    for reason, number in report.dropped.items():
        print(f"no pair: {number:,} prompts {reason}")
    print("votes: " + ", ".join(f"{name} {number:,}" for name, number in report.voters.items()))
    if report.agreement is not None:
        print(
            f"voters agree in {report.agreement:.0%} of {report.comparisons:,} comparisons of two "
            "samples that two of them made"
        )
