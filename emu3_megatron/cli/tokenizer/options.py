"""Arguments that the commands of `emu3 tokenizer` share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from emu3_megatron.cli.arguments import rate

if TYPE_CHECKING:
    from emu3_megatron.vision.files import At

TokenizerFolder = Annotated[
    Path, typer.Argument(metavar="TOKENIZER", help="folder of the vision tokenizer")
]
Files = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="of images and clips, searched through")
]
Area = Annotated[
    int | None,
    typer.Option(
        min=64, metavar="PIXELS", help="of an image or a frame, about; its aspect is kept"
    ),
]
Fps = Annotated[float, rate("frames a second to take from clips")]
Batch = Annotated[int, typer.Option(min=1, help="files of one shape that are computed at once")]
IndependentGroups = Annotated[
    bool,
    typer.Option(
        "--independent-groups",
        help="every 4 frames of a clip by themselves, as the published script does",
    ),
]


def at_of(area: int | None, side: int | None, fps: float, frames: int | None) -> "At":
    """How files are read; by default at about 512 x 512 pixels."""
    from emu3_megatron.errors import InputError
    from emu3_megatron.vision.files import At

    if side is not None and area is not None:
        raise InputError("give --side or --area, not both")
    return At.square(side, fps, frames) if side is not None else At(area or 512 * 512, fps, frames)


def find(folder: Path) -> list[Path]:
    """Images and clips of a folder. Raises InputError when there are none."""
    from emu3_megatron.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_files

    return find_files(folder, IMAGE_SUFFIXES | VIDEO_SUFFIXES)
