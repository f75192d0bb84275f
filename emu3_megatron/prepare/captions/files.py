"""Reads captions from a manifest, or from the .txt beside a file."""

from pathlib import Path
from typing import Any

from emu3_megatron.config.prepare import CaptionConfig
from emu3_megatron.errors import InputError
from emu3_megatron.media.files import path_of, spelling
from emu3_megatron.prepare.tables import read_records

_BOM = "\ufeff"  # that some editors write before a text


class Captions:
    """Captions of the files in a folder: the manifest's, or the .txt of the same name.

    Raises:
        InputError: the manifest cannot be read, or no row of it has one of the columns.
    """

    def __init__(self, config: CaptionConfig, folder: Path):
        self._folder = folder
        self._listed: dict[str, list[str]] = {}
        self._refused: dict[str, str] = {}
        if config.manifest is None:
            return
        found: set[str] = set()
        for number, row in enumerate(read_records(config.manifest, "caption manifest"), 1):
            where = f"{config.manifest}: row {number}"
            if not isinstance(row, dict) or not isinstance(row.get(config.file_column), str):
                raise InputError(f"{where}: has no name of a file in column {config.file_column!r}")
            found |= row.keys()
            self._add(config, row, where)
        if found and (missing := [column for column in config.columns if column not in found]):
            raise InputError(
                f"{config.manifest}: no row has a column {missing[0]!r}; it has "
                f"{', '.join(sorted(map(str, found)))}: name yours in captions.columns"
            )

    def _add(self, config: CaptionConfig, row: dict[str, Any], where: str) -> None:
        source = row[config.file_column]
        source = spelling(source)
        captions = self._listed.setdefault(source, [])  # several rows of a file are several, too
        for column in config.columns:
            try:
                texts = _texts(row.get(column))
            except TypeError as error:
                self._refused[source] = f"{where}: {column!r} {error}"
            else:
                captions += [text for text in texts if text not in captions]

    def of(self, source: str) -> list[str]:
        """Captions of a file, by its path inside the folder; [] when there are none.

        Raises:
            InputError: what stands there is no text.
        """
        if refused := self._refused.get(spelling(source)):
            raise InputError(refused)
        if listed := self._listed.get(spelling(source)):
            return listed
        file = path_of(self._folder, source).with_suffix(".txt")
        try:
            return _texts(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, IsADirectoryError):
            return []
        except UnicodeDecodeError:
            raise InputError(f"its caption {file.name} is not UTF-8 text") from None


def _texts(value: Any) -> list[str]:
    """The captions in a value: a text, or several in a list; those that are empty are left out.

    Raises:
        TypeError: it is no text, such as a number.
    """
    if value is None:
        return []
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    if not isinstance(value, str):
        raise TypeError(f"is {str(value)[:40]}, which is no text")
    text = value.removeprefix(_BOM).strip()
    return [text] if text else []
