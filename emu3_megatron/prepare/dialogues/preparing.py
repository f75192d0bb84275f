"""Data pipeline of dialogues: rows to decisions, images and clips to codes, both to shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from emu3_megatron.config.dialogues import DialoguesConfig
from emu3_megatron.errors import InputError
from emu3_megatron.media.files import (
    IMAGE_SUFFIXES,
    READER_VERSION,
    VIDEO_SUFFIXES,
    name_of,
    search_source,
)
from emu3_megatron.prepare.dialogues.documents import DocumentsTask, RowToWrite, WriteDocuments
from emu3_megatron.prepare.dialogues.encoding import Encoded, FirstShown, encode_shown
from emu3_megatron.prepare.dialogues.rows import SUFFIXES
from emu3_megatron.prepare.dialogues.shown import FileState, Shown, state_of
from emu3_megatron.prepare.dialogues.tables import ReadRows, ReadTask, read_decisions
from emu3_megatron.prepare.sharding import describe_shards, make_shards, refuse_nothing, set_aside
from emu3_megatron.prepare.tables import Row, write_table
from emu3_megatron.prepare.workspace import Workspace, digest, state_or_missing
from emu3_megatron.vision.coding import tokenizer_hash

KIND = "dialogues"
_MEDIA = IMAGE_SUFFIXES | VIDEO_SUFFIXES  # what rows show is not left out
_WAY_OUT = "repair the row, or set odd rows aside with --skip-bad"


def prepare_dialogues(workspace: Workspace, config: DialoguesConfig) -> dict[str, Any]:
    """Make the shards of all rows.

    Returns:
        What the manifest says of them.

    Raises:
        InputError: nothing can be used; or, unless `skip_bad` is set, the first row that cannot.
    """
    return _Run(workspace, config).run()


@dataclass(frozen=True)
class _Group:
    """Rows of a table that become a part together."""

    table: Path
    number: int
    rows: list[Row]


class _Run:
    def __init__(self, workspace: Workspace, config: DialoguesConfig):
        self.workspace, self.config = workspace, config
        self.strict = workspace.recipe.strict or not config.skip_bad
        folder = config.source if config.source.is_dir() else config.source.parent
        self.folders = (folder, config.media or folder)
        self.states: dict[str, FileState | None] = {}  # of images and clips; None: not there

    def run(self) -> dict[str, Any]:
        groups = self._read()
        rows = [row for group in groups for row in group.rows]
        self._find_files(rows)
        self._refuse_odd(rows)
        settings = self._settings(any(row["shown"] for row in rows))
        encoded = self._encode(rows, settings)
        for row in rows:
            for name in row["shown"]:
                _set_aside(row, encoded.errors.get(name))
        self._refuse_odd(rows)
        refuse_nothing(KIND, rows)
        return self._write(groups, encoded, settings)

    def _read(self) -> list[_Group]:
        """Every row, decided as far as its text says."""
        folder = self.folders[0]
        found = search_source(self.config.source, SUFFIXES)
        media = [path for suffix in _MEDIA for path in found.others.get(suffix, ())]
        files = self.workspace.found(KIND, found, used=media).paths
        work = self.workspace.work(KIND, "rows")
        tasks = []
        for file in files:
            source = name_of(file, folder)
            name = digest(state_or_missing(folder, source))
            tasks.append(ReadTask(work / f"{name}.parquet", source, file.stat().st_size))
        self.workspace.run(partial(ReadRows, folder), tasks, f"{KIND}: rows/B")
        groups = []
        for task in tasks:
            for number, rows in enumerate(read_decisions(task.out)):
                for row in rows:
                    row["reason"], row["kept"] = row["error"], row["error"] is None
                groups.append(_Group(task.out, number, rows))
        return groups

    def _find_files(self, rows: Sequence[Row]) -> None:
        """Set aside rows whose images or clips are not there."""
        for row in rows:
            for name in row["shown"] if row["kept"] else ():
                if name not in self.states:
                    self.states[name] = state_of(Shown.parse(name), self.folders)
                if self.states[name] is None:
                    _set_aside(row, _missing(Shown.parse(name), self.folders[1]))

    def _refuse_odd(self, rows: Sequence[Row]) -> None:
        """Write the table; then unless odd rows are set aside, raise at the first."""
        write_table(self.workspace.table(KIND), KIND, rows)
        odd = [row for row in rows if not row["kept"]]
        if odd and self.strict:
            others = f" ({len(odd):,} rows cannot be used, see {self.workspace.table(KIND)})"
            raise InputError(
                f"{self.folders[0] / _name(odd[0])}: {odd[0]['reason']}; {_WAY_OUT}"
                + (others if len(odd) > 1 else "")
            )

    def _settings(self, shows: bool) -> dict[str, Any]:
        """What decides the tokens, besides the rows and the pixels."""
        recipe, config = self.workspace.recipe, self.config
        settings: dict[str, Any] = {"vocabulary": recipe.vocabulary().fingerprint()}
        if not shows:
            return settings
        if recipe.tokenizer is None:
            raise InputError("tokenizer: name the folder of the vision tokenizer")
        fields = {"min_area", "max_area", "clip_area", "clip_fps", "clip_frames"}
        tokenizer = {"tokenizer": tokenizer_hash(recipe.tokenizer)}
        reader = {"reader": READER_VERSION}
        return settings | tokenizer | reader | config.model_dump(include=fields)

    def _encode(self, rows: Sequence[Row], settings: dict[str, Any]) -> Encoded:
        first: dict[str, FirstShown] = {}
        for row in rows:
            for name in row["shown"] if row["kept"] else ():
                if name not in first:
                    state = self.states[name]
                    assert state is not None, "rows without their files are not kept"
                    first[name] = FirstShown(str(self.folders[0] / _name(row)), state)
        return encode_shown(
            self.workspace, self.config, self.folders, first, digest(settings), self.strict
        )

    def _write(
        self, groups: Sequence[_Group], encoded: Encoded, settings: dict[str, Any]
    ) -> dict[str, Any]:
        """The shards, and the table once more: what is too long is known by its tokens alone."""
        settings = {**settings, "max_tokens": self.config.max_tokens}
        vocabulary = self.workspace.recipe.vocabulary()
        make = partial(
            WriteDocuments, vocabulary, self.config.max_tokens, self.folders[0], self.strict
        )
        tasks = [task for group in groups if (task := self._task(group, encoded, settings))]
        made = make_shards(
            self.workspace, KIND, settings, tasks, make, vocabulary, "row", on_device=False
        )
        rows = [row for group in groups for row in group.rows]
        reasons = dict(made.skipped)
        for row in rows:
            _set_aside(row, reasons.get(_name(row)))
        self._refuse_odd(rows)
        return {
            "settings": settings,
            "found": len(rows),
            "kept": sum(row["kept"] for row in rows),
            "set_aside": set_aside(rows),
            "shards": describe_shards(self.workspace, made),
        }

    def _task(
        self, group: _Group, encoded: Encoded, settings: dict[str, Any]
    ) -> DocumentsTask | None:
        rows = [
            RowToWrite(_name(row), place, [encoded.places[name] for name in row["shown"]])
            for place, row in enumerate(group.rows)
            if row["kept"]
        ]
        if not rows:
            return None
        about = [[row.place, [(path.name, i) for path, i in row.codes]] for row in rows]
        name = digest(settings, group.table.name, group.number, about)
        out = self.workspace.work(KIND, "parts") / f"{name}.npz"
        return DocumentsTask(out, group.table, group.number, rows)


def _name(row: Row) -> str:
    return f"{row['source']}: row {row['row']}"


def _set_aside(row: Row, reason: str | None) -> None:
    """Set a row aside if there is a reason; the first one stays."""
    if row["kept"] and reason:
        row["kept"], row["reason"] = False, reason


def _missing(shown: Shown, media: Path) -> str:
    return f"no such {shown.kind}: {shown.name}{_beside(media / shown.name)}"


def _beside(path: Path) -> str:
    """Files of the same name with another suffix, which are often meant."""
    try:
        others = sorted(other.name for other in path.parent.glob(f"{escape(path.stem)}.*"))
    except (OSError, ValueError):
        return ""
    return f" (there is {', '.join(others)})" if others else ""
