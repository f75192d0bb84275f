"""The arguments of Megatron-LM that a checkpoint keeps: to our model's configuration, and back."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from emu3_megatron.config import ModelConfig
from emu3_megatron.config.model import preset_vocabulary
from emu3_megatron.config.presets import PRESETS
from emu3_megatron.errors import InputError
from emu3_megatron.vocabulary import Vocabulary

_SIZES = {
    "layers": "num_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_query_groups",
    "ffn": "ffn_hidden_size",
    "dropout": "hidden_dropout",
    "rope_base": "rotary_base",
    "norm_epsilon": "norm_epsilon",
    "init_std": "init_method_std",
}
_OURS = {theirs: ours for ours, theirs in _SIZES.items()}
# What our decoder computes, in the words of Megatron-LM. The first value is what it takes for an
# argument that is not there.
_MATHEMATICS: dict[str, tuple[Any, Any]] = {
    "normalization": ("LayerNorm", "RMSNorm"),
    "swiglu": (False, True),
    "add_bias_linear": (True, False),
    "untie_embeddings_and_output_weights": (False, True),
    "position_embedding_type": ("learned_absolute", "rope"),
    "rotary_percent": (1.0, 1.0),
    "rotary_interleaved": (False, False),
    "rotary_seq_len_interpolation_factor": (None, None),
    "use_rope_scaling": (False, False),
    "add_qkv_bias": (False, False),
    "qk_layernorm": (False, False),
    "apply_layernorm_1p": (False, False),
    "layernorm_zero_centered_gamma": (False, False),
    "squared_relu": (False, False),
    "window_size": (None, None),
    "num_experts": (None, None),
    "multi_latent_attention": (False, False),
    "mtp_num_layers": (None, None),
    "attention_output_gate": (False, False),
    "softmax_type": ("vanilla", "vanilla"),
}


def model_of(
    arguments: Namespace, rows: int, where: Path, preset: str | None, ranks_file: Path | None
) -> ModelConfig:
    """The decoder that was trained with these arguments.

    Args:
        rows: of its embedding, with those that pad the vocabulary.
        where: the file that holds the arguments, for messages.
        preset: whose vocabulary it has; None: the one whose padded size fits.

    Raises:
        InputError: an argument that our decoder does not have, by name.
    """
    given = dict(vars(arguments))
    given.setdefault("norm_epsilon", given.get("layernorm_epsilon"))  # its name since 2026
    if given.get("use_rotary_position_embeddings"):
        given["position_embedding_type"] = "rope"
    for name, (usual, needed) in _MATHEMATICS.items():
        value = given.get(name, usual)
        if value != needed:
            raise InputError(f"{where}: {name} is {value}; only {needed} is supported")
    missing = [name for name in _OURS if given.get(name) is None and name != "num_query_groups"]
    if missing:
        raise InputError(f"{where}: its arguments lack {missing[0]}; is it of Megatron-LM?")
    if not given.get("group_query_attention"):
        given["num_query_groups"] = given["num_attention_heads"]
    vocabulary = _vocabulary(given, rows, where, preset)
    sizes = {ours: given[theirs] for theirs, ours in _OURS.items()}
    model = ModelConfig.model_validate(
        {
            **sizes,
            "text": vocabulary.encoding.name,
            "codes": vocabulary.num_codes,
            "ranks_file": ranks_file,
        }
    )
    width = given.get("kv_channels") or model.head_dim
    if width != model.head_dim:
        raise InputError(f"{where}: kv_channels is {width}; only {model.head_dim} is supported")
    return model


def _vocabulary(given: dict[str, Any], rows: int, where: Path, preset: str | None) -> Vocabulary:
    if preset is not None:
        if preset not in PRESETS:
            raise InputError(f"--model {preset}: no such preset; choose one of {_presets()}")
        vocabulary = preset_vocabulary(preset)
        if vocabulary.size > rows:
            raise InputError(
                f"{where}: {rows:,} rows of the embedding are fewer than the {vocabulary.size:,} "
                f"ids of {preset}"
            )
        return vocabulary
    multiple = given.get("make_vocab_size_divisible_by") or 128
    multiple *= given.get("tensor_model_parallel_size") or 1
    for name in PRESETS:
        vocabulary = preset_vocabulary(name)
        if rows == -(-vocabulary.size // multiple) * multiple:
            return vocabulary
    raise InputError(
        f"{where}: {rows:,} rows of the embedding are of no preset's vocabulary; name one with "
        f"--model: {_presets()}"
    )


def _presets() -> str:
    return ", ".join(PRESETS)


def arguments_of(
    model: ModelConfig, dtype: torch.dtype, max_positions: int, rows: int, tensor: int
) -> Namespace:
    """What Megatron-LM's `--use-checkpoint-args` reads."""
    sizes = {theirs: getattr(model, ours) for ours, theirs in _SIZES.items()}
    if float(model.rope_base).is_integer():
        sizes["rotary_base"] = int(model.rope_base)
    return Namespace(
        **sizes,
        layernorm_epsilon=model.norm_epsilon,
        **{name: needed for name, (_, needed) in _MATHEMATICS.items()},
        attention_dropout=model.dropout,
        group_query_attention=model.kv_heads != model.heads,
        kv_channels=model.head_dim,
        max_position_embeddings=max_positions,
        seq_length=max_positions,
        add_position_embedding=True,  # Megatron-LM's default, which it compares; rope has none
        use_rotary_position_embeddings=False,
        padded_vocab_size=rows,
        make_vocab_size_divisible_by=128,
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=1,
        transformer_impl="local",
        params_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=False,
    )
