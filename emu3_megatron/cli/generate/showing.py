"""Questions and texts with the files that they show, as documents for the model."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emu3_megatron.cli.sampling import Checkpoint
from emu3_megatron.errors import InputError

if TYPE_CHECKING:
    from emu3_megatron.generation.files.reading import Sizes
    from emu3_megatron.grammar import Turn, Vision
    from emu3_megatron.prepare.dialogues.parsing import Dialogue


@dataclass(frozen=True)
class Asked:
    """A dialogue that waits for its last answer.

    Attributes:
        name: for messages.
        row: as it was written.
        files: that it shows, by their places in the dialogue.
    """

    name: str
    row: dict[str, Any]
    dialogue: "Dialogue"
    files: list[Path]


def ask(text: str, show: Sequence[Path]) -> Asked:
    """A text in which <image> and <video> mark where the files stand; in front without marks."""
    from emu3_megatron.generation.files.reading import is_clip

    files: dict[str, list[Path]] = {"image": [], "video": []}
    marks = ""
    for path in show:
        kind = "video" if is_clip(path) else "image"
        files[kind].append(path)
        marks += f"<{kind}>"
    if not any(f"<{kind}>" in text for kind in files):
        text = marks + text
    row = {"messages": [{"role": "user", "content": text}]}
    media = {f"{kind}s": list(map(str, paths)) for kind, paths in files.items()}
    return _parse(repr(text[:40]), {**row, **media}, Path())


def read_rows(path: Path, media: Path | None) -> list[Asked]:
    """The dialogues of a file; raises InputError, naming the row, when one cannot be used."""
    from emu3_megatron.prepare.dialogues import rows

    if not path.is_file() or path.suffix not in rows.SUFFIXES:
        known = ", ".join(sorted(rows.SUFFIXES))
        raise InputError(f"{path}: no file of dialogues; they are read from {known}")
    folder = media or path.parent
    asked = [_parse(f"{path}: row {n}", row, folder) for n, row in rows.read_rows(path)]
    if not asked:
        raise InputError(f"{path}: no rows")
    return asked


def _parse(name: str, row: Any, folder: Path) -> Asked:
    from emu3_megatron.prepare.dialogues.parsing import OddRowError, parse_row

    try:
        found = parse_row(row, is_open=True)
    except OddRowError as error:
        raise InputError(f"{name}: {error}") from None
    files = []
    for medium in found.media:
        if medium.name is None:
            raise InputError(f"{name}: an image inside the row; write it to a file and name that")
        files.append(folder / medium.name)
    return Asked(name, row, found, files)


@dataclass
class Showing:
    """Encodes the files that are shown, each once; the first rank does it for all.

    Attributes:
        tokenizer: folder; None: the recipe's.
        area: pixels of images and frames; None: as the training data, or as Emu3's.
    """

    source: Checkpoint
    tokenizer: Path | None
    area: int | None
    fps: float
    frames: int
    _found: "dict[Path, Vision]" = field(default_factory=dict)

    def encode(self, files: Sequence[Path]) -> "list[Vision]":
        from emu3_megatron.generation.files.reading import read_vision
        from emu3_megatron.parallel.votes import on_first_rank

        new = [path for path in dict.fromkeys(files) if path not in self._found]
        if new:
            network, sizes = self.source.tokenizer(self.tokenizer), self._sizes()
            read = lambda: {path: read_vision(network, path, sizes) for path in new}
            self._found |= on_first_rank(read)
        return [self._found[path] for path in files]

    def _sizes(self) -> "Sizes":
        from emu3_megatron.generation.files.reading import Sizes, default_area

        return Sizes.of(self.area or default_area(self.source.about), self.fps, self.frames)

    def turns(self, asked: Asked) -> "list[Turn]":
        """The dialogue with the codes of what it shows."""
        from emu3_megatron.grammar import Turn

        shown = self.encode(asked.files)
        return [
            Turn([p if isinstance(p, str) else shown[p] for p in turn.parts], turn.answer)
            for turn in asked.dialogue.turns
        ]
