"""Folders of codes: encodes images and clips into them, and decodes them again.

`encoding.json` says how all files were encoded. Each has its codes in `NAME.npz`: `codes` [h, w]
of an image or [f, h, w] of a clip, and `content`, the SHA-256 of the file. `files.jsonl` names
them all, and those that could not be encoded.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing, write_json
from emu3_megatron.media.images import to_image
from emu3_megatron.media.writers import write_clip, write_png
from emu3_megatron.vision.files import At, Batch, Failed, batches
from emu3_megatron.vision.tokenizer import VisionTokenizer

FORMAT = "emu3-megatron/codes"
_ABOUT, _INDEX = "encoding.json", "files.jsonl"


@dataclass(frozen=True)
class Encoding:
    """How files were encoded.

    Attributes:
        tokenizer: hash of its files.
        at: how files were read.
        independent_groups: every 4 frames of a clip were encoded by themselves.
    """

    tokenizer: str
    codebook_size: int
    at: At
    independent_groups: bool = False

    def begin(self, folder: Path) -> None:
        """Write it into a folder, or go on there. Raises InputError where it says otherwise."""
        if not (folder / _ABOUT).exists():
            write_json(folder / _ABOUT, {"format": FORMAT, **asdict(self)})
            return
        before, now = _flat(asdict(Encoding.read(folder))), _flat(asdict(self))
        for name, value in now.items():
            if before[name] != value:
                raise InputError(
                    f"{folder}: was encoded with {name} {before[name]}, not {value}; "
                    "choose another --out"
                )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises InputError when a folder is none of codes."""
        path = folder / _ABOUT
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("format") != FORMAT:
                raise ValueError
            return cls(**{**values, "at": At(**values["at"])})
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); name a folder that "
                "emu3 tokenizer encode wrote"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path}: not what emu3 tokenizer encode writes") from None


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    return {**{k: v for k, v in values.items() if k != "at"}, **values["at"]}


@dataclass(frozen=True)
class Row:
    """A line of `files.jsonl`.

    Attributes:
        file: its path inside the folder that was encoded.
        codes: the file with its codes, by its path inside the folder of codes.
        shape: of the codes.
        error: why there are none.
    """

    file: str
    codes: str | None = None
    shape: Sequence[int] | None = None
    error: str | None = None


def tokenizer_hash(folder: Path) -> str:
    """Hash of the tokenizer's files. Raises InputError when there are none."""
    found = hashlib.blake2b(digest_size=16)
    try:
        for name in ("config.json", "model.safetensors"):
            found.update((folder / name).read_bytes())
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read; is {folder} a tokenizer?") from None
    return found.hexdigest()


def encode_files(
    tokenizer: VisionTokenizer,
    encoding: Encoding,
    source: Path,
    files: Sequence[Path],
    out: Path,
    batch: int,
) -> Iterator[Row]:
    """Encode files of the folder `source`, a row for each; what is there already is left as it is.

    Args:
        batch: files of one shape that are encoded at once.
    """
    left = []
    for path in files:
        name = path.relative_to(source).as_posix()
        done = _read_codes(out / f"{name}.npz", _content(path))
        if done is None:
            left.append(path)
        else:
            yield Row(name, f"{name}.npz", done.shape)
    for found in batches(left, encoding.at, batch):
        if isinstance(found, Failed):
            yield Row(found.path.relative_to(source).as_posix(), error=found.reason)
            continue
        codes = _encode(tokenizer, found, encoding.independent_groups).cpu().numpy()
        for path, own in zip(found.paths, codes.astype(np.int32), strict=True):
            name = path.relative_to(source).as_posix()
            _write_codes(out / f"{name}.npz", own, _content(path))
            yield Row(name, f"{name}.npz", own.shape)


def _encode(tokenizer: VisionTokenizer, batch: Batch, independent_groups: bool) -> Tensor:
    pixels = batch.pixels.to(next(tokenizer.parameters()).device)
    if batch.kind == "image":
        return tokenizer.encode_images(pixels)
    return tokenizer.encode_clips(pixels, independent_groups)


def write_index(out: Path, rows: Iterable[Row]) -> None:
    """Write `files.jsonl`, in the order of the files' names."""
    with replacing(out / _INDEX) as beside:
        found = [asdict(row) for row in sorted(rows, key=lambda row: row.file)]
        lines = [json.dumps({k: v for k, v in row.items() if v is not None}) for row in found]
        beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def find_codes(folder: Path) -> list[Path]:
    """The files of codes in a folder. Raises InputError when there are none."""
    paths = sorted(folder.rglob("*.npz"))
    if not paths:
        raise InputError(f"{folder}: no codes in it; emu3 tokenizer encode writes them")
    return paths


def decode_files(
    tokenizer: VisionTokenizer, encoding: Encoding, folder: Path, files: Sequence[Path], out: Path
) -> Iterator[Row]:
    """Decode files of codes into PNG and MP4, a row for each."""
    size = tokenizer.network.codebook_size
    for path in files:
        name = path.relative_to(folder).as_posix()
        codes = _read_codes(path)
        if codes is None or not _are_codes(codes):
            yield Row(name, error="not codes that emu3 tokenizer encode wrote")
        elif codes.min() < 0 or codes.max() >= size:
            yield Row(
                name,
                error=f"codes {codes.min()} to {codes.max()}: there are {size:,}",
            )
        else:
            picture = _decode(tokenizer, encoding, codes, out / name.removesuffix(".npz"))
            yield Row(picture.relative_to(out).as_posix(), name, codes.shape)


def _are_codes(found: np.ndarray) -> bool:
    return found.ndim in (2, 3) and found.size > 0 and found.dtype.kind in "iu"


def _decode(
    tokenizer: VisionTokenizer, encoding: Encoding, codes: np.ndarray, target: Path
) -> Path:
    """Write what one file's codes show; returns where."""
    given = torch.from_numpy(codes.astype(np.int64))[None]
    given = given.to(next(tokenizer.parameters()).device)
    if codes.ndim == 2:
        path = target.with_name(f"{target.name}.png")
        write_png(path, to_image(tokenizer.decode_images(given)[0]))
        return path
    path = target.with_name(f"{target.name}.mp4")
    pixels_tchw = tokenizer.decode_clips(given, encoding.independent_groups)[0]
    write_clip(path, pixels_tchw, encoding.at.fps)
    return path


def _write_codes(path: Path, codes: np.ndarray, content: str) -> None:
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez(file, codes=codes, content=np.array(content))


def _read_codes(path: Path, content: str | None = None) -> np.ndarray | None:
    """The codes of a file; None where there are none, or of another content."""
    try:
        with np.load(path) as stored:
            fits = content is None or str(stored["content"]) == content
            return stored["codes"] if fits else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
        return None


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
