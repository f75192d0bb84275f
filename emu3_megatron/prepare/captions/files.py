"""Reads captions from a manifest, or from the .txt beside a file."""

from pathlib import Path
from typing import Any

from emu3_megatron.config.prepare import CaptionConfig
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.tables import read_records


class Captions:
    """Captions of the files in a folder: the manifest's, or the .txt of the same name.

    Raises:
        InputError: the manifest cannot be read, or lacks a column.
    """

    def __init__(self, config: CaptionConfig, folder: Path):
        self._folder = folder
        self._listed: dict[str, list[str]] = {}
        if config.manifest is not None:
            for number, row in enumerate(read_records(config.manifest, "caption manifest"), 1):
                self._add(config, row, f"{config.manifest}: row {number}")

    def _add(self, config: CaptionConfig, row: dict[str, Any], where: str) -> None:
        if not isinstance(row, dict) or config.file_column not in row:
            raise InputError(f"{where}: has no column {config.file_column!r}")
        found = [str(row[column]).strip() for column in config.columns if row.get(column)]
        self._listed[str(row[config.file_column])] = [caption for caption in found if caption]

    def of(self, source: str) -> list[str]:
        """Captions of a file, by its path inside the folder; [] when there are none.

        Raises:
            InputError: its .txt is not UTF-8.
        """
        if listed := self._listed.get(source):
            return listed
        file = (self._folder / source).with_suffix(".txt")
        try:
            caption = file.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return []
        except UnicodeDecodeError:
            raise InputError(f"its caption {file.name} is not UTF-8 text") from None
        return [caption] if caption else []
