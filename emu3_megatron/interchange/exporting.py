"""`emu3 convert export`: a checkpoint or a tokenizer to a Hugging Face folder."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from emu3_megatron.checkpoints.folders import find_checkpoint, read_checkpoint
from emu3_megatron.checkpoints.folders import verify as require_sound
from emu3_megatron.config.training import DecoderRecipe
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing
from emu3_megatron.interchange import configs, text_files
from emu3_megatron.interchange.decoder import DecoderTable
from emu3_megatron.interchange.importing import require_absent
from emu3_megatron.interchange.layouts import ALONE, LAYOUTS, Layout
from emu3_megatron.interchange.megatron_lm.converting import export_gpt
from emu3_megatron.interchange.sharded import checkpoint_dtype
from emu3_megatron.interchange.vision import VisionTable, is_tokenizer
from emu3_megatron.interchange.weights import SHARD_BYTES, Spec, Weights, write_weights
from emu3_megatron.vision.tokenizer import read_network

MEGATRON_LAYOUTS = ("megatron", "megatron-file")


def export_folder(
    source: Path,
    target: Path,
    layout: str = "transformers",
    tokenizer: Path | None = None,
    ranks_file: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    is_sound: bool = False,
    tensor: int = 1,
) -> list[str]:
    """Send weights out, with configurations and tokenizer files; a kill leaves all or nothing.

    Megatron's groups over one process must be there (`parallel.start`).

    Args:
        source: a run, a checkpoint, or the folder of a vision tokenizer.
        layout: transformers, baai, hub, or one of Megatron-LM: megatron, megatron-file.
        tokenizer: the vision tokenizer to put beside the decoder; without it the one that was
            imported with the checkpoint, if any.
        ranks_file: emu3.tiktoken; without it the checkpoint's, or dashscope's copy.
        is_sound: whoever calls knows that the checkpoint is whole.
        tensor: of Megatron-LM's layouts: the rows of the vocabulary are padded for so many tensor
            parallel ranks.

    Returns:
        A line for each thing written.

    Raises:
        InputError: no such checkpoint, a damaged one, a layout that does not hold these models
            together, or `target` exists. Nothing has been written then.
    """
    require_absent(target)
    decoder = None if is_tokenizer(source) else _Decoder(source, ranks_file, is_sound)
    if layout in MEGATRON_LAYOUTS:
        return _export_gpt(source, target, layout, decoder, tokenizer, tensor)
    vision = _vision_of(source, decoder, layout, tokenizer)
    names = _layout_of(layout, both=decoder is not None and vision is not None)
    export = _Export(layout, names, decoder, _Vision(vision, names) if vision else None)
    with replacing(target) as beside:
        beside.mkdir()
        export.write_texts(beside)
        write_weights(beside, export.specs(), export.tensors(), "export", shard_bytes)
    return [f"{target}: layout {layout}"]


def _export_gpt(
    source: Path,
    target: Path,
    layout: str,
    decoder: "_Decoder | None",
    tokenizer: Path | None,
    tensor: int,
) -> list[str]:
    if decoder is None or tokenizer:
        given = f"--tokenizer {tokenizer}" if decoder else str(source)
        raise InputError(f"{given}: Megatron-LM's layouts hold a decoder alone")
    if layout == "megatron" and target.suffix == ".pt":
        raise InputError(f"{target}: layout megatron is a folder; --layout megatron-file is a file")
    export_gpt(
        decoder.path,
        target,
        decoder.model,
        decoder.dtype,
        decoder.max_positions,
        distributed=layout == "megatron",
        tensor=tensor,
    )
    return [f"{target}: layout {layout}"]


def _vision_of(
    source: Path, decoder: "_Decoder | None", layout: str, tokenizer: Path | None
) -> Path | None:
    """The vision tokenizer that goes into the folder."""
    if decoder is None:
        return source
    if layout == "baai":
        if tokenizer:
            raise InputError("--tokenizer: BAAI's layout keeps it in a folder of its own")
        return None
    beside = source / "tokenizer"
    return tokenizer or (beside if is_tokenizer(beside) else None)


def _layout_of(layout: str, both: bool) -> Layout:
    if layout == "hub" and not both:
        raise InputError("--layout hub: holds decoder and vision tokenizer; give --tokenizer too")
    return ALONE if layout == "transformers" and not both else LAYOUTS[layout]


class _Decoder:
    """A checkpoint of ours."""

    def __init__(self, source: Path, ranks_file: Path | None, is_sound: bool):
        self.path = find_checkpoint(source)
        if not is_sound:
            require_sound(self.path)
        about = read_checkpoint(self.path)
        recipe = about["recipe"]
        self.model = DecoderRecipe.of(self.path, about).model
        if ranks_file:
            self.model = self.model.model_copy(update={"ranks_file": ranks_file})
        self.max_positions: int = about.get("max_positions") or recipe["data"]["context"]
        self.image_area: int | None = about.get("image_area")
        self.dtype = checkpoint_dtype(self.path)

    def table(self, names: Layout) -> DecoderTable:
        return DecoderTable(self.model, names.decoder, self.dtype)


class _Vision:
    """A tokenizer folder of ours."""

    def __init__(self, folder: Path, names: Layout):
        self.network = read_network(folder / "config.json")
        self.weights = Weights(folder)
        self.table = VisionTable(self.network, names.vision)
        self.weights.require({name: tensor.shape for name, tensor in self.table.ours.items()})
        self.dtype = self.weights.float_dtype(self.table.ours)


class _Export:
    """All that goes into one folder."""

    def __init__(
        self, layout: str, names: Layout, decoder: _Decoder | None, vision: _Vision | None
    ):
        self.layout, self.decoder, self.vision = layout, decoder, vision
        self.table = decoder.table(names) if decoder else None

    def specs(self) -> dict[str, Spec]:
        decoder = self.table.export_specs() if self.table else {}
        vision = self.vision.table.export_specs(self.vision.weights) if self.vision else {}
        return decoder | vision

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        decoder = self.table.exported(self.decoder.path) if self.table and self.decoder else ()
        vision = self.vision.table.exported(self.vision.weights) if self.vision else ()
        return chain(decoder, vision)

    def write_texts(self, folder: Path) -> None:
        """Configurations, and whatever turns text and pictures into what the models read."""
        files: dict[str, Any] = {"config.json": self._config()}
        if self.decoder:
            vocabulary = self.decoder.model.vocabulary()
            files["generation_config.json"] = configs.generation_config(vocabulary)
            if self.layout == "baai":
                files |= text_files.baai_tokenizer(vocabulary, folder)
            else:
                files |= text_files.transformers_tokenizer(vocabulary)
        if self.vision:
            baai = self.layout == "baai"
            files |= text_files.baai_processor() if baai else text_files.transformers_processor()
        if self.decoder and self.vision:
            (folder / "chat_template.jinja").write_text(text_files.CHAT_TEMPLATE, encoding="utf-8")
        text_files.write_files(folder, files)

    def _config(self) -> dict[str, Any]:
        decoder = vision = None
        if self.decoder:
            decoder = configs.decoder_config(
                self.decoder.model,
                self.decoder.dtype,
                self.decoder.max_positions,
                self.layout,
                self.decoder.image_area,
            )
        if self.vision:
            vision = configs.vision_config(self.vision.network, self.vision.dtype, self.layout)
        if self.decoder and decoder and vision:
            return configs.joint_config(decoder, vision, self.decoder.model.vocabulary())
        only = decoder or vision
        assert only is not None
        return only
