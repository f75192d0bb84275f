"""Images and clips that rows show: their names, and reading those that lie inside rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu3_megatron.media.files import file_named, path_of
from emu3_megatron.prepare.dialogues.rows import Damaged, read_parquet
from emu3_megatron.prepare.workspace import file_state

FileState = tuple[str, int, int]


@dataclass(frozen=True)
class Shown:
    """An image or a clip that a row shows.

    Attributes:
        kind: image or video, by name in the folder of media; inside: an image in a row's cell.
        name: of the file; of an image inside a row `FILE#ROW#PLACE`.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"

    @classmethod
    def parse(cls, text: str) -> "Shown":
        kind, _, name = text.partition(":")
        return cls(kind, name)


def state_of(shown: Shown, folders: tuple[Path, Path]) -> FileState | None:
    """By what an image or a clip is recognised; None when there is no such file.

    Args:
        folders: of the files of rows, and of the media.
    """
    sources, media = folders
    try:
        if shown.kind == "inside":
            source = _parts(shown.name)[0]
            return file_state(path_of(sources, source), source)
        return file_state(file_named(media, shown.name), shown.name)
    except (OSError, ValueError):  # a name that no file can have
        return None


def read_inside(folder: Path, shown: Sequence[Shown]) -> Iterator[tuple[str, bytes]]:
    """Name and content of the images that lie inside rows, one pass through each file."""
    wanted: dict[str, set[int]] = {}
    names = {one.name for one in shown if one.kind == "inside"}
    for name in names:
        source, number, _ = _parts(name)
        wanted.setdefault(source, set()).add(number)
    for source, numbers in wanted.items():
        for number, row in read_parquet(path_of(folder, source), min(numbers), max(numbers) + 1):
            if number in numbers and not isinstance(row, Damaged):
                yield from _images_of(row, source, number, names)


def _images_of(
    row: Mapping[str, Any], source: str, number: int, names: set[str]
) -> Iterator[tuple[str, bytes]]:
    values = row.get("image") or row.get("images")
    for place, value in enumerate(values if isinstance(values, list) else [values]):
        if (name := inside_name(source, number, place)) in names:
            yield name, value["bytes"]


def inside_name(source: str, row: int, place: int) -> str:
    """Name of the image at a place among those in a row."""
    return f"{source}#{row}#{place}"


def _parts(name: str) -> tuple[str, int, int]:
    source, row, place = name.rsplit("#", 2)
    return source, int(row), int(place)
