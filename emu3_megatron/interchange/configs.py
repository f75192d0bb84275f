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
        self._refuse_other_mathematics(values)
        rope = self._dictionary(values, "rope_parameters") or values
        text, codes = self._vocabulary(values)
        model = {
            **PRESETS["emu3-8b"],
            **{ours: values[theirs] for ours, theirs in _SIZES.items() if theirs in values},
            "rope_base": rope.get("rope_theta", 1_000_000),
            "text": text,
            "codes": codes,
            "ranks_file": ranks_file,
        }
        return self._validated(ModelConfig, {**model, "preset": _preset_of(model)}, _SIZES)

    def max_positions(self) -> int:
        return self._count(self._part("text_config"), "max_position_embeddings", 9216)

    def vision(self) -> TokenizerNetwork:
        """The vision tokenizer that it describes."""
        values = self._part("vq_config")
        baai = values.get("model_type") == "Emu3VisionVQ"
        names = {ours: a if baai else b for ours, a, b in _NETWORK}
        fields = {ours: values[theirs] for ours, theirs in names.items() if theirs in values}
        return self._validated(TokenizerNetwork, fields, names)

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

    def _vocabulary(self, values: dict[str, Any]) -> tuple[str, int]:
        size = self._count(values, "vocab_size", Vocabulary.emu3().size)
        text = "qwen" if size > Vocabulary.emu3().first_code else "bytes"
        base = Vocabulary.emu3() if text == "qwen" else Vocabulary.tiny()
        expected = {"pad_token_id": base.pad, "bos_token_id": base.bos}
        for name, token in expected.items():
            if values.get(name, token) != token or size <= base.first_code:
                raise InputError(
                    f"{self.path}: vocab_size {size} with {name} {values.get(name)} is not a "
                    f"vocabulary of Emu3's kind; expected {name} {token}"
                )
        return text, size - base.first_code

    def _refuse_other_mathematics(self, values: dict[str, Any]) -> None:
        rope = self._dictionary(values, "rope_parameters")
        expected = {
            "hidden_act": (values.get("hidden_act", "silu"), "silu"),
            "tie_word_embeddings": (values.get("tie_word_embeddings", False), False),
            "rope_scaling": (values.get("rope_scaling"), None),
            "rope_parameters.rope_type": (rope.get("rope_type", "default"), "default"),
        }
        for name, (given, needed) in expected.items():
            if given != needed:
                raise InputError(f"{self.path}: {name} is {given}; only {needed} is supported")

    def _validated(self, schema: Any, values: dict[str, Any], names: dict[str, str]) -> Any:
        try:
            return schema.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = [names.get(str(part), str(part)) for part in first["loc"]]
            raise InputError(": ".join([str(self.path), *where, first["msg"]])) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
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
    model: ModelConfig, dtype: torch.dtype, max_positions: int, layout: str
) -> dict[str, Any]:
    """`config.json` of a decoder alone, as BAAI's or transformers' Emu3ForCausalLM."""
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
