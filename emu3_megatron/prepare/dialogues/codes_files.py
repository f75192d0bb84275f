"""Files of the codes of images and clips, with why others could not be encoded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from emu3_megatron.files import replacing
from emu3_megatron.grammar import Meta, Vision


def write_codes(
    path: Path, found: Mapping[int, Vision], errors: Mapping[int, str], type: type[np.generic]
) -> None:
    """Write what was encoded and what could not be, by its place in the task."""
    clips = {p: [v.meta.fps, v.meta.seconds] for p, v in found.items() if v.meta.fps is not None}
    about = json.dumps({"errors": errors, "clips": clips})
    arrays: dict[str, Any] = {str(p): vision.codes.astype(type) for p, vision in found.items()}
    arrays["about"] = np.frombuffer(about.encode(), np.uint8)
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez(file, **arrays)


def read_errors(path: Path) -> dict[int, str]:
    """Why images and clips could not be encoded, by their place."""
    with np.load(path) as arrays:
        errors = json.loads(arrays["about"].tobytes())["errors"]
    return {int(place): reason for place, reason in errors.items()}


class CodesFile:
    """The codes in one file, read when they are asked for."""

    def __init__(self, path: Path):
        self._arrays = np.load(path)
        self._clips = json.loads(self._arrays["about"].tobytes())["clips"]

    def __getitem__(self, place: int) -> Vision:
        codes_fhw = self._arrays[str(place)]
        fps, seconds = self._clips.get(str(place), (None, None))
        frames, height, width = codes_fhw.shape
        return Vision(Meta(height, width, frames, fps, seconds), codes_fhw)
