"""`emu3 status`: where a training run is, from its folder alone."""

from pathlib import Path
from typing import Annotated

import typer

from emu3_megatron.cli.arguments import until_reader_leaves


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the run's folder: recipe's run.dir")],
) -> None:
    """Where a training run is, from its folder alone.

    Its step, loss, speed, last checkpoint and troubles; and whether it is alive.
    """
    from emu3_megatron.runs.status import status

    with until_reader_leaves():
        print("\n".join(status(run)))
