"""Converts configurations: Hugging Face's JSON to our schemas, and back."""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from emu3_megatron.config import ModelConfig
from emu3_megatron.config.presets import PRESETS
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.errors import InputError
from emu3_megatron.interchange import fields
from emu3_megatron.vocabulary import Vocabulary

_BAAI = "BAAI/Emu3-Gen"  # the repository whose code BAAI's layouts run; ours holds none of it
_BAAI_VISION = "BAAI/Emu3-VisionTokenizer"
_DECODERS = ("Emu3", "emu3_text_model")
_VISIONS = ("Emu3VisionVQ", "emu3_vqgan")
_BOTH = "emu3"
_SIZES = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "ffn": "intermediate_size",
    "dropout": "attention_dropout",
    "norm_epsilon": "rms_norm_eps",
    "init_std": "initializer_range",
}
# What makes two folders hold one model.
ARCHITECTURE = (
    "layers",
    "hidden",
    "heads",
    "kv_heads",
    "ffn",
    "rope_base",
    "norm_epsilon",
    "text",
    "codes",
)
# Ours, BAAI's name, transformers' name.
_NETWORK = (
    ("codebook_size", "codebook_size", "codebook_size"),
    ("embed_dim", "embed_dim", "embed_dim"),
    ("latent_channels", "z_channels", "latent_channels"),
    ("base_channels", "ch", "base_channels"),
    ("channel_multiplier", "ch_mult", "channel_multiplier"),
    ("num_res_blocks", "num_res_blocks", "num_res_blocks"),
    ("attention_levels", "attn_resolutions", "attn_resolutions"),
)

BAAI_FIELDS = {baai: transformers for _, baai, transformers in _NETWORK} | {
    "double_z": "double_latent"
}


class HubConfig:
    """`config.json` of a Hugging Face folder.

    A field that is not there has the value of the published models: transformers 4 leaves out of
    `text_config` and `vq_config` what its classes have by default.

    Raises:
        InputError: not JSON, or of another model.
    """

    def __init__(self, folder: Path):
        self.path = folder / "config.json"
        self._values = _read(self.path)
        kind = self._values.get("model_type")
        if kind not in (*_DECODERS, *_VISIONS, _BOTH):
            raise InputError(f"{self.path}: model_type is {kind!r}, not a model of Emu3")

    def decoder(self, ranks_file: Path | None) -> ModelConfig:
        """The decoder that it describes."""
        values = self._part("text_config")
        text, codes = self._vocabulary(values)
        model = {
            **PRESETS["emu3-8b"],
            **{ours: values[theirs] for ours, theirs in _SIZES.items() if theirs in values},
            "rope_base": self._rope_base(values),
            "text": text,
            "codes": codes,
            "ranks_file": ranks_file,
        }
        if model["kv_heads"] is None:  # as in transformers' other models: one for each head
            model["kv_heads"] = model["heads"]
        found = self._validated(ModelConfig, {**model, "preset": _preset_of(model)}, _SIZES)
        self._check_decoder(values, found)
        return found

    def max_positions(self) -> int:
        return self._count(self._part("text_config"), "max_position_embeddings", 9216)

    def image_area(self) -> int | None:
        """The pixels of an image that BAAI's code draws, where it is stated."""
        area = self._part("text_config").get("image_area")
        return None if area is None else self._count({"image_area": area}, "image_area", 0)

    def vision(self) -> TokenizerNetwork:
        """The vision tokenizer that it describes."""
        values = self._part("vq_config")
        baai = self.is_baai
        names = {ours: a if baai else b for ours, a, b in _NETWORK}
        given = {ours: values[theirs] for ours, theirs in names.items() if theirs in values}
        found = self._validated(TokenizerNetwork, given, names)
        width = {"hidden_size": found.level_channels[-1]}
        fields.check_fields(
            self._where("vq_config"), values, set(names.values()), fields.VISION_NEEDS | width
        )
        return found

    def check_together(self, model: ModelConfig, network: TokenizerNetwork) -> None:
        """Whether decoder and vision tokenizer speak of the same codes.

        Raises:
            InputError: codebook or vocabulary map are not those of the decoder's vocabulary.
        """
        if network.codebook_size != model.codes:
            raise InputError(
                f"{self.path}: vq_config.codebook_size is {network.codebook_size:,}, "
                f"text_config.vocab_size has {model.codes:,} codes"
            )
        given = self._dictionary(self._values, "vocabulary_map")
        if given:
            fields.check_vocabulary_map(self.path, given, vocabulary_map(model.vocabulary()))

    @property
    def kind(self) -> str:
        """`model_type`."""
        return str(self._values["model_type"])

    @property
    def is_baai(self) -> bool:
        """Whether it is of BAAI's own code, which lies on the hub."""
        return self.kind in (_DECODERS[0], _VISIONS[0])

    def raw(self) -> dict[str, Any]:
        """Everything that the file says."""
        return dict(self._values)

    def _part(self, name: str) -> dict[str, Any]:
        if self._values["model_type"] != _BOTH:
            return self._values
        if name not in self._values:
            raise InputError(f"{self.path}: no {name}")
        return self._dictionary(self._values, name)

    def _dictionary(self, values: dict[str, Any], name: str) -> dict[str, Any]:
        value = values.get(name) or {}
        if not isinstance(value, dict):
            raise InputError(f"{self.path}: {name} is {value!r}, not a dictionary")
        return value

    def _count(self, values: dict[str, Any], name: str, default: int) -> int:
        value = values.get(name, default)
        if not isinstance(value, int):
            raise InputError(f"{self.path}: {name} is {value!r}, not a number")
        return value

    def _where(self, part: str) -> str:
        return f"{self.path}: {part}." if self.kind == _BOTH else f"{self.path}: "

    def _vocabulary(self, values: dict[str, Any]) -> tuple[str, int]:
        size = self._count(values, "vocab_size", Vocabulary.emu3().size)
        text = "qwen" if size > Vocabulary.emu3().first_code else "bytes"
        base = Vocabulary.emu3() if text == "qwen" else Vocabulary.tiny()
        fields.check_tokens(f"{self.path}: vocab_size {size} with ", values, base)
        if size <= base.first_code:
            raise InputError(f"{self.path}: vocab_size {size} leaves no ids for codes")
        return text, size - base.first_code

    def _rope_base(self, values: dict[str, Any]) -> float:
        """The base of the rotary angles, stated once, or twice alike."""
        rope = self._dictionary(values, "rope_parameters")
        inside, beside = rope.get("rope_theta"), values.get("rope_theta")
        if inside is not None and beside is not None and inside != beside:
            raise InputError(
                f"{self._where('text_config')}rope_theta is {beside}, and "
                f"rope_parameters.rope_theta {inside}; give one of them"
            )
        stated = inside if inside is not None else beside
        return 1_000_000 if stated is None else stated

    def _check_decoder(self, values: dict[str, Any], model: ModelConfig) -> None:
        where = self._where("text_config")
        rope = self._dictionary(values, "rope_parameters")
        usual = {"rope_type": "default", "type": "default"}
        fields.check_fields(f"{where}rope_parameters.", rope, fields.ROPE, usual)
        tokens = fields.token_fields(model.vocabulary())
        read = fields.DECODER | set(tokens)
        needs = fields.DECODER_NEEDS | {"head_dim": model.head_dim}
        fields.check_fields(where, values, read, needs)
        if self.kind == _BOTH:
            read = fields.TOGETHER | set(tokens)
            fields.check_fields(f"{self.path}: ", self._values, read, fields.TOGETHER_NEEDS)
            fields.check_tokens(f"{self.path}: ", self._values, model.vocabulary())

    def _validated(self, schema: Any, values: dict[str, Any], names: dict[str, str]) -> Any:
        try:
            return schema.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = [names.get(str(part), str(part)) for part in first["loc"]]
            raise InputError(": ".join([str(self.path), *where, first["msg"]])) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; is this a Hugging Face folder?") from None
    except ValueError:
        raise InputError(f"{path}: not JSON") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a configuration")
    return values


def _preset_of(model: dict[str, Any]) -> str | None:
    fits = lambda preset: all(model[name] == value for name, value in preset.items())
    return next((name for name, preset in PRESETS.items() if fits(preset)), None)


def decoder_config(
    model: ModelConfig,
    dtype: torch.dtype,
    max_positions: int,
    layout: str,
    image_area: int | None = None,
) -> dict[str, Any]:
    """`config.json` of a decoder alone, as BAAI's or transformers' Emu3ForCausalLM.

    Args:
        image_area: pixels of the images that it draws, a field of BAAI's, if it is known.
    """
    vocabulary = model.vocabulary()
    values: dict[str, Any] = {
        "architectures": ["Emu3ForCausalLM"],
        "model_type": "Emu3" if layout == "baai" else "emu3_text_model",
        **{theirs: getattr(model, ours) for ours, theirs in _SIZES.items()},
        "vocab_size": vocabulary.size,
        "hidden_act": "silu",
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": False,
        "use_cache": True,
        **_token_ids(vocabulary),
        **_dtype(dtype, layout),
        **({} if image_area is None else {"image_area": image_area}),
    }
    if layout == "transformers":
        rope = {"rope_theta": model.rope_base, "rope_type": "default"}
        return {**values, "rope_parameters": rope}
    values["rope_theta"] = model.rope_base
    return {**values, **_baai_extras(vocabulary)} if layout == "baai" else values


def _baai_extras(vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "auto_map": {
            "AutoConfig": f"{_BAAI}--configuration_emu3.Emu3Config",
            "AutoModelForCausalLM": f"{_BAAI}--modeling_emu3.Emu3ForCausalLM",
        },
        "img_token_id": vocabulary.codes_follow,
        "boi_token_id": vocabulary.vision_start,
        "eoi_token_id": vocabulary.vision_end,
        "eol_token_id": vocabulary.end_of_line,
        "eof_token_id": vocabulary.end_of_frame,
    }


def vision_config(network: TokenizerNetwork, dtype: torch.dtype, layout: str) -> dict[str, Any]:
    """`config.json` of a vision tokenizer alone."""
    baai = layout == "baai"
    values = {(a if baai else b): getattr(network, ours) for ours, a, b in _NETWORK} | {
        "in_channels": 3,
        "out_channels": 3,
        "temporal_downsample_factor": 4,
    }
    values |= _dtype(dtype, layout)
    if baai:
        return {
            "architectures": ["Emu3VisionVQModel"],
            "model_type": "Emu3VisionVQ",
            "auto_map": {
                "AutoConfig": f"{_BAAI_VISION}--configuration_emu3visionvq.Emu3VisionVQConfig",
                "AutoModel": f"{_BAAI_VISION}--modeling_emu3visionvq.Emu3VisionVQModel",
            },
            **values,
            "double_z": False,
            "dropout": 0.0,
        }
    return {
        "architectures": ["Emu3VQVAE"],
        "model_type": "emu3_vqgan",
        **values,
        "double_latent": False,
        "num_attention_heads": 1,
        "attention_dropout": 0.0,
        # transformers asks for the width of the levels that have attention, and of the middle.
        "hidden_size": network.level_channels[-1],
    }


def joint_config(
    decoder: dict[str, Any], vision: dict[str, Any], vocabulary: Vocabulary
) -> dict[str, Any]:
    """`config.json` of both models in one, transformers' Emu3ForConditionalGeneration."""
    return {
        "architectures": ["Emu3ForConditionalGeneration"],
        "model_type": "emu3",
        "text_config": decoder,
        "vq_config": vision,
        "vocabulary_map": vocabulary_map(vocabulary),
        "tie_word_embeddings": False,
        **_token_ids(vocabulary),
        **{name: value for name, value in decoder.items() if name.endswith("dtype")},
    }


def vocabulary_map(vocabulary: Vocabulary) -> dict[str, int]:
    """What transformers' model looks up of the vocabulary: codes, EOL, and its placeholder.

    It calls the placeholder for an image's codes `<image>`, BAAI's tokenizer `<|extra_0|>`.
    """
    spelled = {
        surface: id
        for id, surface in enumerate(vocabulary.surfaces(), start=vocabulary.num_text)
        if id >= vocabulary.first_code or id == vocabulary.end_of_line
    }
    return {"<image>": vocabulary.image_placeholder, **spelled}


def generation_config(vocabulary: Vocabulary) -> dict[str, Any]:
    return _token_ids(vocabulary)


def _token_ids(vocabulary: Vocabulary) -> dict[str, int]:
    return {
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eos,
        "pad_token_id": vocabulary.pad,
    }


def _dtype(dtype: torch.dtype, layout: str) -> dict[str, str]:
    key = "dtype" if layout == "transformers" else "torch_dtype"
    return {key: str(dtype).removeprefix("torch.")}
