"""Reads and writes safetensors files a tensor at a time; no model is ever whole in memory."""

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from emu3_megatron.errors import InputError
from emu3_megatron.files import sync
from emu3_megatron.progress import mark

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5 * 10**9  # what transformers writes by default
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Spec:
    """What the header of a file says of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class Weights:
    """The tensors of a Hugging Face folder, or of one safetensors file.

    Every header is read and checked at once, every tensor when it is asked for.

    Raises:
        InputError: no weights, a shard that is missing or damaged, a tensor of a strange dtype.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._file_of: dict[str, Path] = {}
        self.specs: dict[str, Spec] = {}
        for file in _files_of(folder):
            for name, spec in _read_header(file):
                self._file_of[name] = file
                self.specs[name] = spec
        for name in _promised(folder):
            if name not in self.specs:
                raise InputError(f"{folder / INDEX}: lists {name}, which no file holds")

    def __getitem__(self, name: str) -> torch.Tensor:
        mark()
        with safe_open(self._file_of[name], framework="pt") as file:
            return file.get_tensor(name)

    def float_dtype(self, names: Iterable[str]) -> torch.dtype:
        """The one floating-point dtype of these tensors: fp32 or bf16."""
        found = {self.specs[n].dtype for n in names if self.specs[n].dtype.is_floating_point}
        if found in ({torch.float32}, {torch.bfloat16}):
            return found.pop()
        listed = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
        raise InputError(
            f"{self.folder}: its weights are {listed}; give all in fp32 or all in bf16"
        )

    def require(self, expected: dict[str, torch.Size]) -> None:
        """Raise InputError unless every one of these tensors is here, in its shape."""
        for name, shape in expected.items():
            if name not in self.specs:
                raise InputError(f"{self.folder}: lacks {name}; is a file missing?")
            if self.specs[name].shape != tuple(shape):
                raise InputError(
                    f"{self._file_of[name]}: {name} is {_by(self.specs[name].shape)}, "
                    f"config.json makes it {_by(shape)}"
                )


def _by(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _files_of(folder: Path) -> list[Path]:
    if folder.suffix == ".safetensors" and folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if (folder / INDEX).is_file():
        return sorted({folder / str(file) for file in _read_index(folder).values()})
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    raise InputError(f"{folder}: no {SINGLE} and no {INDEX} here; give a folder with safetensors")


def _read_index(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{folder / INDEX}: not an index of safetensors files") from None


def _promised(folder: Path) -> Iterable[str]:
    return _read_index(folder) if (folder / INDEX).is_file() else ()


def _read_header(path: Path) -> Iterator[tuple[str, Spec]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                piece = file.get_slice(name)
                if piece.get_dtype() not in _DTYPES:
                    raise InputError(f"{path}: {name} is {piece.get_dtype()}; give fp32 or bf16")
                yield name, Spec(tuple(piece.get_shape()), _DTYPES[piece.get_dtype()])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, though the index lists it") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({error})") from None


def write_weights(
    folder: Path,
    specs: dict[str, Spec],
    tensors: Iterable[tuple[str, torch.Tensor]],
    what: str,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `model.safetensors`, or several with their index, tensor by tensor, with progress.

    Args:
        specs: what will come, in its order: a file's header stands before its tensors.
        tensors: the tensors, in that order.
        what: the name of the progress bar.
        shard_bytes: largest file, unless one tensor alone is larger.
    """
    shards = _divide(specs, shard_bytes)
    count = len(shards)
    names = [SINGLE] if count == 1 else [_shard_name(i, count) for i in range(count)]
    incoming = iter(tensors)
    with byte_progress(what, sum(spec.nbytes for spec in specs.values())) as progress:
        for file, shard in zip(names, shards, strict=True):
            _write_file(folder / file, {name: specs[name] for name in shard}, incoming, progress)
    if count > 1:
        _write_index(folder, specs, dict(zip(names, shards, strict=True)))


def byte_progress(what: str, total: int) -> tqdm:
    """A bar of bytes with their rate and the time left."""
    return tqdm(total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1024)


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _divide(specs: dict[str, Spec], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    left = shard_bytes
    for name, spec in specs.items():
        if spec.nbytes > left and shards[-1]:
            shards.append([])
            left = shard_bytes
        shards[-1].append(name)
        left -= spec.nbytes
    return shards


def _write_file(
    path: Path,
    specs: dict[str, Spec],
    incoming: Iterator[tuple[str, torch.Tensor]],
    progress: tqdm,
) -> None:
    with open(path, "wb") as file:
        file.write(_header(specs))
        for name, spec in specs.items():
            came, tensor = next(incoming)
            assert (came, tuple(tensor.shape), tensor.dtype) == (name, spec.shape, spec.dtype)
            file.write(_bytes_of(tensor))
            progress.update(spec.nbytes)
            mark()
    sync(path)


def _header(specs: dict[str, Spec]) -> bytes:
    """https://github.com/huggingface/safetensors#format: length, JSON padded to 8 bytes, data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, spec in specs.items():
        end = offset + spec.nbytes
        header[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _write_index(folder: Path, specs: dict[str, Spec], shards: dict[str, list[str]]) -> None:
    index = {
        "metadata": {"total_size": sum(spec.nbytes for spec in specs.values())},
        "weight_map": {name: file for file, names in shards.items() for name in names},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    sync(folder / INDEX)
