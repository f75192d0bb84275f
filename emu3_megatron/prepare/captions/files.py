"""Reads captions from a manifest, or from the .txt, or in a tar the .json, beside a file."""

import json
from pathlib import Path
from typing import Any

from emu3_megatron.config.prepare import CaptionConfig
from emu3_megatron.errors import InputError
from emu3_megatron.media.files import File, Folder, path_of, spelling
from emu3_megatron.prepare.tables import read_records

_BOM = "\ufeff"  # that some editors write before a text


class Captions:
    """Captions of the files in a folder: the manifest's, or the .txt of the same name.

    Raises:
        InputError: the manifest cannot be read, or no row of it has one of the columns.
    """

    def __init__(self, config: CaptionConfig, folder: Folder):
        self._folder, self._columns = folder, config.columns
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
        file = path_of(self._folder, source)
        found = (self._beside(file.with_suffix(suffix)) for suffix in caption_suffixes(file))
        return next(filter(None, found), [])

    def _beside(self, file: File) -> list[str]:
        try:
            text = file.read_text(encoding="utf-8")
        except (FileNotFoundError, IsADirectoryError):
            return []
        except UnicodeDecodeError:
            raise InputError(f"its caption {file.name} is not UTF-8 text") from None
        return self._of_json(file, text) if file.suffix == ".json" else _texts(text)

    def _of_json(self, file: File, text: str) -> list[str]:
        try:
            values = json.loads(text.removeprefix(_BOM))
            columns = [values.get(column) for column in self._columns]
            return list(dict.fromkeys(_texts(columns)))
        except (ValueError, AttributeError, RecursionError):
            raise InputError(f"its caption {file.name} is no JSON object") from None
        except TypeError as error:
            raise InputError(f"its caption {file.name} {error}") from None


def caption_suffixes(file: File) -> tuple[str, ...]:
    """Of the files beside it that hold captions, the first that has one counts."""
    return (".txt",) if isinstance(file, Path) else (".json", ".txt")


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
