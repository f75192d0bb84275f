"""Files of the codes of images and clips, with why others could not be encoded."""

import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emu3_megatron.files import replacing
from emu3_megatron.grammar import Meta, Vision
from emu3_megatron.vocabulary import Vocabulary


@dataclass(frozen=True)
class Coded:
    """Codes of an image or a clip, and the JPEGs that the captions' endpoint gets of it."""

    vision: Vision
    pictures: tuple[bytes, ...] = ()


def write_codes(
    path: Path, found: Iterable[tuple[int, Coded | str]], vocabulary: Vocabulary
) -> None:
    """Write what was encoded, or why it could not be, by its place in the task.

    One item at a time is in memory.
    """
    type_ = np.uint16 if vocabulary.num_codes <= 1 << 16 else np.int32
    errors, clips = {}, {}
    with replacing(path) as beside, zipfile.ZipFile(beside, "w") as file:
        for place, one in found:
            if isinstance(one, str):
                errors[place] = one
                continue
            meta = one.vision.meta
            if meta.fps is not None:
                clips[place] = [meta.fps, meta.seconds, len(one.pictures)]
            with file.open(f"{place}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, one.vision.codes.astype(type_))
            for number, jpeg in enumerate(one.pictures):
                _write(file, _picture_name(place, number), jpeg)
        _write(file, "about.json", json.dumps({"errors": errors, "clips": clips}).encode())


def read_errors(path: Path) -> dict[int, str]:
    """Why images and clips could not be encoded, by their place."""
    with zipfile.ZipFile(path) as file:
        errors = json.loads(file.read("about.json"))["errors"]
    return {int(place): reason for place, reason in errors.items()}


class CodesFile:
    """The codes in one file, read when they are asked for."""

    def __init__(self, path: Path):
        self._file: Any = zipfile.ZipFile(path)
        self._clips = json.loads(self._file.read("about.json"))["clips"]

    def __getitem__(self, place: int) -> Vision:
        with self._file.open(f"{place}.npy") as entry:
            codes_fhw = np.lib.format.read_array(entry)
        fps, seconds, _ = self._clips.get(str(place), (None, None, 0))
        frames, height, width = codes_fhw.shape
        return Vision(Meta(height, width, frames, fps, seconds), codes_fhw)

    def pictures(self, place: int) -> list[bytes]:
        """What the captions' endpoint gets of a clip."""
        *_, number = self._clips[str(place)]
        return [self._file.read(_picture_name(place, i)) for i in range(number)]


def _picture_name(place: int, number: int) -> str:
    return f"{place}-{number}.jpg"


def _write(file: zipfile.ZipFile, name: str, data: bytes) -> None:
    with file.open(name, "w") as entry:  # writestr would write down when it was called
        entry.write(data)
