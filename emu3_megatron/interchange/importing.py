"""`emu3 convert import`: a Hugging Face folder to a checkpoint or a tokenizer."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from emu3_megatron import manifest
from emu3_megatron.checkpoints.folders import FORMAT
from emu3_megatron.config import ModelConfig
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing
from emu3_megatron.interchange.configs import HubConfig
from emu3_megatron.interchange.decoder import DecoderTable
from emu3_megatron.interchange.layouts import find_decoder, find_vision
from emu3_megatron.interchange.megatron_lm.converting import GPTImport
from emu3_megatron.interchange.megatron_lm.reading import find_iteration
from emu3_megatron.interchange.movqgan import import_movqgan
from emu3_megatron.interchange.vision import VisionTable, write_network
from emu3_megatron.interchange.weights import Weights, write_weights

_CHECKPOINT = "a checkpoint; train from it with run.init_from"


def import_folder(
    source: Path,
    target: Path,
    tensor: int = 1,
    ranks_file: Path | None = None,
    preset: str | None = None,
) -> list[str]:
    """Bring weights in; a kill leaves `target` whole or not at all.

    Megatron's groups over one process must be there (`parallel.start`).

    A decoder becomes the checkpoint `target/checkpoints`, as in a run's folder; a vision tokenizer
    beside it `target/tokenizer`, alone `target` itself.

    Args:
        source: a Hugging Face folder, a checkpoint of Megatron-LM, or the file of SBER's MoVQGAN.
        tensor: refuse a decoder that does not divide over so many tensor parallel ranks. The
            checkpoint itself opens on any layout.
        ranks_file: emu3.tiktoken, noted in the checkpoint.
        preset: whose vocabulary a checkpoint of Megatron-LM has, if its rows do not tell.

    Returns:
        A line for each thing written.

    Raises:
        InputError: nothing of Emu3 here, something missing, damaged or of another shape, or
            `target` exists. Nothing has been written then.
    """
    require_absent(target)
    if found := find_iteration(source):
        return _import_gpt(GPTImport(found, preset, ranks_file), source, target, tensor)
    if source.suffix in (".ckpt", ".pt", ".pth"):
        return import_movqgan(source, target)
    weights = Weights(source)
    importer = _Importer(source, weights, tensor, ranks_file)
    importer.check()
    with replacing(target) as beside:
        beside.mkdir()
        written = importer.write(beside)
    return [f"{target / name}: {what}" for name, what in written]


def _import_gpt(gpt: GPTImport, source: Path, target: Path, tensor: int) -> list[str]:
    _require_divisible(gpt.model, tensor)
    with replacing(target) as beside:
        about = _about(gpt.model, gpt.dtype, source) | {"max_positions": gpt.max_positions}
        _commit(beside, about, gpt.write_checkpoint)
    return [f"{target / 'checkpoints'}: {_CHECKPOINT}"]


def _about(model: ModelConfig, dtype: torch.dtype, source: Path) -> dict[str, Any]:
    """What the manifest says of an imported checkpoint."""
    return {
        "format": FORMAT,
        "step": 0,
        "vocabulary": model.vocabulary().fingerprint(),
        "recipe": {
            "model": model.model_dump(mode="json"),
            "precision": "bf16" if dtype == torch.bfloat16 else "fp32",
        },
        "imported_from": str(source),
        "null_prompt": None,  # whether they were trained without captions is not known
        "state": {},
    }


def _commit(folder: Path, about: dict[str, Any], write: Callable[[Path], None]) -> None:
    unnamed = folder / "unnamed"
    unnamed.mkdir(parents=True)
    write(unnamed)
    manifest.commit(unnamed, folder / "checkpoints", about, known={})


def require_absent(target: Path, setting: str = "--to") -> None:
    if target.exists():
        raise InputError(f"{target}: exists; choose another {setting}")


class _Importer:
    def __init__(self, source: Path, weights: Weights, tensor: int, ranks_file: Path | None):
        self.source, self.weights = source, weights
        decoder, vision = find_decoder(weights.specs), find_vision(weights.specs)
        if decoder is None and vision is None:
            raise InputError(f"{source}: holds neither a decoder nor a vision tokenizer of Emu3")
        self.config = HubConfig(source)
        self.decoder: DecoderTable | None = None
        self.vision: VisionTable | None = None
        if vision:
            self.vision = VisionTable(self.config.vision(), vision)
        if decoder:
            model = self.config.decoder(ranks_file and ranks_file.absolute())
            _require_divisible(model, tensor)
            if ranks_file:
                model.vocabulary().encoding.check()
            dtype = weights.float_dtype(decoder.among(weights.specs))
            self.decoder = DecoderTable(model, decoder, dtype)

    def check(self) -> None:
        """Everything that can be wrong, before anything is written."""
        expected = (self.decoder.theirs if self.decoder else {}) | (
            self.vision.theirs if self.vision else {}
        )
        self.weights.require(expected)
        if self.vision:
            self.weights.float_dtype(self.vision.theirs)
        if self.vision and self.decoder:
            self.config.check_together(self.decoder.model, self.vision.network)
        for name in self.weights.specs:
            if name not in expected and not name.endswith("rotary_emb.inv_freq"):
                raise InputError(f"{self.source}: {name} belongs to no model of Emu3")

    def write(self, folder: Path) -> list[tuple[str, str]]:
        written = []
        if self.decoder:
            self._write_checkpoint(folder)
            written.append(("checkpoints", _CHECKPOINT))
        if self.vision:
            name = "tokenizer" if self.decoder else "."
            (folder / name).mkdir(exist_ok=True)
            specs = self.vision.import_specs(self.weights)
            write_weights(folder / name, specs, self.vision.imported(self.weights), "tokenizer")
            write_network(self.vision.network, folder / name)
            written.append((name, "a vision tokenizer"))
        return written

    def _write_checkpoint(self, folder: Path) -> None:
        assert self.decoder is not None
        about = _about(self.decoder.model, self.decoder.dtype, self.source) | {
            "max_positions": self.config.max_positions(),
            "image_area": self.config.image_area(),
        }
        _commit(folder, about, partial(self.decoder.write_checkpoint, self.weights))


def _require_divisible(model: ModelConfig, tensor: int) -> None:
    for name in ("heads", "kv_heads", "ffn"):
        if getattr(model, name) % tensor:
            raise InputError(
                f"--tensor {tensor}: does not divide the model's {name}, {getattr(model, name)}"
            )
