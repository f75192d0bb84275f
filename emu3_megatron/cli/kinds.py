"""Finds out what a file or folder is, by the `format` it names or by what lies in it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from emu3_megatron.config.load import shipped_recipes
from emu3_megatron.errors import InputError

Kind = Literal[
    "recipe",
    "shard",
    "packs",
    "prepared data",
    "samples",
    "columns",
    "checkpoint",
    "folder of checkpoints",
    "run",
    "vision tokenizer",
    "run of the vision tokenizer",
    "Hugging Face weights",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

TRACKER = "latest"  # names the newest of the checkpoints in its folder

# The file that says what a folder is, and the formats it may name.
FORMATS: tuple[tuple[str, str, Kind], ...] = (
    ("manifest.json", "emu3-megatron/checkpoint/2", "checkpoint"),
    ("manifest.json", "emu3-megatron/checkpoint/1", "checkpoint"),
    ("manifest.json", "emu3-megatron/prepared/1", "prepared data"),
    ("manifest.json", "emu3-megatron/samples/1", "samples"),
    ("manifest.json", "emu3-megatron/columns/1", "columns"),
    ("pack.json", "emu3-megatron/packs/1", "packs"),
    ("config.json", "emu3-megatron/vision-tokenizer", "vision tokenizer"),
)
_OURS = "emu3-megatron/"
_SHARD_SUFFIXES = ("", ".bin", ".idx", ".json")


def kind_of(path: str | Path) -> Kind | None:
    """What a path holds; None for what emu3 neither reads nor writes.

    Raises:
        InputError: the file that should say it is damaged, or of another version.
    """
    folder = Path(path)
    if folder.is_dir():
        return _kind_by_format(folder) or _kind_by_files(folder)
    if str(path).endswith((".yaml", ".yml")) or str(path) in shipped_recipes():
        return "recipe"
    return "shard" if _is_shard(str(path)) else None


def kinds_inside(folder: Path) -> Iterator[tuple[Path, Kind]]:
    """The folders in a folder that emu3 knows."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            kind = kind_of(path) if path.is_dir() else None
        except InputError:
            continue
        if kind:
            yield path, kind


def _kind_by_format(folder: Path) -> Kind | None:
    for file in dict.fromkeys(name for name, _, _ in FORMATS):
        if not (folder / file).is_file():
            continue
        found = _format_in(folder / file)
        for name, format, kind in FORMATS:
            if (name, format) == (file, found):
                return kind
        if str(found).startswith(_OURS):
            raise InputError(
                f"{folder / file}: format {found}, which this version of emu3 does not know; "
                "use the one that wrote it"
            )
    return None


def _format_in(file: Path) -> Any:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InputError(f"{file}: damaged, it is not JSON; take a copy of its folder") from None
    return values.get("format") if isinstance(values, dict) else None


def _kind_by_files(folder: Path) -> Kind | None:
    """What has no file with a format: it is known by what lies in it."""
    checkpoints = folder / "checkpoints"
    if (folder / "run.json").is_file() or _has_tracker(checkpoints):
        return "run"
    if _kind_by_format(checkpoints) == "checkpoint":  # as emu3 convert import leaves it
        return "run"
    if _has_tracker(folder):
        return "folder of checkpoints"
    if (folder / "tokenizer" / "config.json").is_file():
        return "run of the vision tokenizer"
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return "Hugging Face weights"
    return None


def _has_tracker(folder: Path) -> bool:
    """Whether a file names the newest of the checkpoints in a folder."""
    tracker = folder / TRACKER
    return tracker.is_file() and tracker.read_text(errors="replace", encoding="utf-8").startswith(
        "step-"
    )


def _is_shard(path: str) -> bool:
    return any(
        Path(path.removesuffix(suffix) + ending).is_file()
        for suffix in _SHARD_SUFFIXES
        if path.endswith(suffix)
        for ending in (".bin", ".idx")
    )
