"""Finds and reads checkpoints of Megatron-LM: torch_dist folders, and files of torch.save."""

import json
import pickle
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from emu3_megatron.checkpoints.state import stored_tensors
from emu3_megatron.config import ModelConfig
from emu3_megatron.errors import InputError
from emu3_megatron.interchange.megatron_lm.frame import GPTFrame
from emu3_megatron.interchange.megatron_lm.names import THEIR_HEAD, fused, theirs
from emu3_megatron.interchange.sharded import Frame
from emu3_megatron.model.tensors import EMBEDDING, is_in_vocabulary

TRACKER = "latest_checkpointed_iteration.txt"
RANK_FILE = "model_optim_rng.pt"


class _Inert:
    """Stands for an object of a class that nothing here needs, whatever it was made of."""

    def __init__(self, *arguments: Any, **keywords: Any):
        pass

    def __call__(self, *arguments: Any, **keywords: Any) -> "_Inert":
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Makes tensors and plain containers, and of everything else an inert object: runs no code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("argparse", "Namespace"):
            return Namespace
        if (module, name) == ("types", "SimpleNamespace"):
            return SimpleNamespace
        plain = {
            ("collections", "OrderedDict"),
            ("torch._utils", "_rebuild_tensor_v2"),
            ("torch._utils", "_rebuild_parameter"),
        }
        storage = module in ("torch", "torch.storage") and name.endswith("Storage")
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) in plain or storage or dtype or (module, name) == ("torch", "Size"):
            return super().find_class(module, name)
        return _Inert


class _Pickle:
    """As much of the module `pickle` as torch.load asks for."""

    Unpickler = _Unpickler
    load = staticmethod(lambda file, **more: _Unpickler(file, **more).load())


def load_file(path: Path) -> dict[str, Any]:
    """A file of torch.save, its tensors memory-mapped. Raises InputError."""
    try:
        content = torch.load(
            path, map_location="cpu", weights_only=False, pickle_module=_Pickle, mmap=True
        )
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: damaged or not a file of torch.save ({first})") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no dictionary")
    return content


def find_iteration(source: Path) -> Path | None:
    """The checkpoint of Megatron-LM there: a folder of an iteration, or a file; None: none.

    Args:
        source: a folder with the tracker file, that of an iteration, or a file.

    Raises:
        InputError: the tracker names a folder that is not there.
    """
    if source.is_file():
        return source if source.suffix in (".pt", ".pth") and _is_theirs(source) else None
    if (source / TRACKER).is_file():
        named = (source / TRACKER).read_text(encoding="utf-8").strip()
        folder = source / (f"iter_{int(named):07d}" if named.isdigit() else named)
        if not folder.is_dir():
            raise InputError(f"{source / TRACKER}: names {folder.name}, which is not there")
        return folder
    is_distributed = (source / ".metadata").is_file() and (source / "common.pt").is_file()
    is_ours = (source / "manifest.json").is_file()
    return source if (is_distributed and not is_ours) or any(source.glob("mp_rank_*")) else None


def _is_theirs(path: Path) -> bool:
    content = load_file(path)
    return "args" in content and any(name.startswith("model") for name in content)


def open_checkpoint(path: Path) -> "DistributedCheckpoint | FileCheckpoint":
    """A checkpoint that `find_iteration` found. Raises InputError."""
    if path.is_dir() and (path / ".metadata").is_file():
        return DistributedCheckpoint(path)
    return FileCheckpoint(path)


class DistributedCheckpoint:
    """A checkpoint of `--ckpt-format torch_dist`, of any parallel layout.

    Attributes:
        arguments: those that Megatron-LM was started with.
        where: the file that holds them.
        rows: of the embedding.
        dtype: of the weights.
    """

    def __init__(self, path: Path):
        self.path, self.where = path, path / "common.pt"
        _require_torch_dist(path)
        self.arguments = _arguments(load_file(self.where), self.where)
        stored = stored_tensors(path)
        if THEIR_HEAD not in stored or EMBEDDING not in stored:
            raise InputError(f"{path}: holds no {THEIR_HEAD}; is it of Megatron-LM's GPTModel?")
        self.rows = stored[EMBEDDING].size[0]
        self.dtype = stored[THEIR_HEAD].properties.dtype
        self._stored = stored
        self._is_stacked = "decoder.layers.mlp.linear_fc2.weight" in stored

    def prepare(self, model: ModelConfig) -> None:
        """Raises InputError unless it holds this model's tensors, in their shapes, and no other."""
        self._frame = GPTFrame(model, self.dtype, self.rows, self._is_stacked)
        expected = {
            piece.key: torch.Size(piece.global_shape)
            for name, meta in self._frame.parameters.items()
            for piece in self._frame.pieces(name, meta)
        }
        given = {
            name: about.size
            for name, about in self._stored.items()
            if not name.startswith(("optimizer.", "chained_", "rng_state", "rerun_state"))
        }
        _compare(self.path, given, expected)

    def parameter(self, ours: str) -> Tensor:
        """One of our decoder's parameters."""
        return self._frame.read_one(self.path, ours, self._stored)


class FileCheckpoint:
    """A file of torch.save, or one for each tensor parallel rank: `--ckpt-format torch`.

    Attributes as of `DistributedCheckpoint`.
    """

    def __init__(self, path: Path):
        self.path = path
        files = [path] if path.is_file() else _rank_files(path)
        self.where = files[0]
        contents = [load_file(file) for file in files]
        self.arguments = _arguments(contents[0], self.where)
        self._parts = [_state(content, file) for content, file in zip(contents, files, strict=True)]
        for name in (EMBEDDING, THEIR_HEAD):
            if name not in self._parts[0]:
                raise InputError(f"{self.where}: holds no {name}; is it of Megatron-LM's GPTModel?")
        ranks = getattr(self.arguments, "tensor_model_parallel_size", 1) or 1
        if ranks != len(files):
            raise InputError(
                f"{path}: tensor_model_parallel_size is {ranks}, and {len(files)} files are there; "
                "give the folder that holds all of them"
            )
        self.rows = sum(len(part[EMBEDDING]) for part in self._parts)
        self.dtype = self._parts[0][THEIR_HEAD].dtype

    def prepare(self, model: ModelConfig) -> None:
        """Raises InputError unless it holds this model's tensors, in their shapes, and no other."""
        parameters = Frame(model, self.dtype).parameters
        expected = {
            theirs(name): torch.Size(
                [self.rows, meta.shape[1]] if is_in_vocabulary(name) else meta.shape
            )
            for name, meta in parameters.items()
        }
        present = set.intersection(*(set(part) for part in self._parts))
        # Shapes alone: joining views on the meta device reads no file.
        given = {
            name: _join(name, [part[name].to("meta") for part in self._parts]).shape
            for name in present
        }
        _compare(self.where, given, expected)

    def parameter(self, ours: str) -> Tensor:
        """One of our decoder's parameters."""
        name = theirs(ours)
        return _join(name, [part[name] for part in self._parts])


def _require_torch_dist(path: Path) -> None:
    try:
        backend = json.loads((path / "metadata.json").read_text(encoding="utf-8"))[
            "sharded_backend"
        ]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path / 'metadata.json'}: does not name its format") from None
    if backend != "torch_dist":
        raise InputError(f"{path}: of format {backend}; save it with --ckpt-format torch_dist")


def _arguments(content: dict[str, Any], where: Path) -> Namespace:
    arguments = content.get("args")
    if not isinstance(arguments, Namespace):
        raise InputError(f"{where}: holds no arguments of Megatron-LM (args)")
    return arguments


def _rank_files(folder: Path) -> list[Path]:
    folders = sorted(folder.glob("mp_rank_*"))
    if any(len(one.name) > len("mp_rank_00") for one in folders):
        raise InputError(
            f"{folder}: of several pipeline stages; save it with --ckpt-format torch_dist"
        )
    files = [one / RANK_FILE for one in folders]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: no such file")
    return files


def _state(content: dict[str, Any], where: Path) -> dict[str, Tensor]:
    """The tensors of a rank, each norm alone."""
    state = content.get("model")
    if not isinstance(state, dict):
        raise InputError(f"{where}: holds no model; is it of several virtual pipeline stages?")
    if "language_model" in state:
        raise InputError(
            f"{where}: of Megatron-LM's legacy classes; save it with --use-mcore-models"
        )
    alone = {fused(norm): norm for norm in _norms(state)}
    return {
        alone.get(str(name), str(name)): tensor
        for name, tensor in state.items()
        if isinstance(tensor, Tensor) and not name.endswith("_extra_state")
    }


def _norms(state: dict[str, Any]) -> Sequence[str]:
    """The names of the norms of all layers that a state has, as they stand alone."""
    layers = {name.split(".")[2] for name in state if name.startswith("decoder.layers.")}
    kinds = ("input_layernorm", "pre_mlp_layernorm")
    return [f"decoder.layers.{layer}.{kind}.weight" for layer in layers for kind in kinds]


def _join(name: str, parts: Sequence[Tensor]) -> Tensor:
    """One tensor out of the parts of tensor parallel ranks."""
    if len(parts) == 1:
        return parts[0]
    kind = name.removesuffix(".weight").split(".", 3)[-1]  # behind the number of the layer
    if kind in ("self_attention.linear_proj", "mlp.linear_fc2"):
        return torch.cat(list(parts), dim=1)
    if kind == "mlp.linear_fc1":  # each rank has its rows of the gate, then of the other half
        halves = zip(*(part.chunk(2) for part in parts), strict=True)
        return torch.cat([torch.cat(half) for half in halves])
    return parts[0] if name.endswith("layernorm.weight") else torch.cat(list(parts))


def _compare(where: Path, given: dict[str, torch.Size], expected: dict[str, torch.Size]) -> None:
    for name, shape in expected.items():
        if name not in given:
            raise InputError(f"{where}: lacks {name}")
        if tuple(given[name]) != tuple(shape):
            there, here = (" x ".join(map(str, size)) for size in (given[name], shape))
            raise InputError(f"{where}: {name} is {there}, its arguments make it {here}")
    for name in given:
        if name not in expected:
            raise InputError(f"{where}: {name} belongs to no model of Emu3")
