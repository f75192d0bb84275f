"""Which fields of a Hugging Face `config.json` are read, must have one value, or change nothing.

A field that is none of these is refused by name: nobody here knows whether the model that it
describes is another one.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from emu3_megatron.errors import InputError
from emu3_megatron.vocabulary import Vocabulary

DECODER = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "attention_dropout",
    "rms_norm_eps",
    "initializer_range",
    "max_position_embeddings",
    "rope_theta",
    "rope_parameters",
    "image_area",
}
DECODER_NEEDS = {
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_scaling": None,
    "mlp_bias": False,
    "attention_bias": False,
    "partial_rotary_factor": None,
}
ROPE = {"rope_theta", "rope_type", "type"}
VISION_NEEDS = {
    "in_channels": 3,
    "out_channels": 3,
    "temporal_downsample_factor": 4,
    "double_z": False,
    "double_latent": False,
    "dropout": 0,
    "attention_dropout": 0,
    "num_attention_heads": 1,
}
TOGETHER = {"text_config", "vq_config", "vocabulary_map"}
TOGETHER_NEEDS = {"tie_word_embeddings": False}

# Fields of every configuration of transformers 4 and 5: about files, classes and outputs, and
# settings of generation, which generation_config.json holds today.
_WITHOUT_EFFECT = {
    "model_type",
    "architectures",
    "auto_map",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "name_or_path",
    "_name_or_path",
    "_commit_hash",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "attn_implementation",
    "_attn_implementation_internal",
    "pretraining_tp",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
    "torchscript",
    "use_bfloat16",
    "tf_legacy_loss",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "is_decoder",
    "add_cross_attention",
    "cross_attention_hidden_size",
    "tie_encoder_decoder",
    "finetuning_task",
    "id2label",
    "label2id",
    "num_labels",
    "problem_type",
    "task_specific_params",
    "tokenizer_class",
    "prefix",
    "decoder_start_token_id",
    "sep_token_id",
    "max_length",
    "min_length",
    "do_sample",
    "early_stopping",
    "num_beams",
    "num_beam_groups",
    "diversity_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
    "repetition_penalty",
    "length_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "num_return_sequences",
    "output_scores",
    "return_dict_in_generate",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "remove_invalid_values",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
}


def token_fields(vocabulary: Vocabulary) -> dict[str, int]:
    """The ids that a configuration may state, and what they are in this vocabulary."""
    return {
        "pad_token_id": vocabulary.pad,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eos,
        "image_token_id": vocabulary.image_placeholder,
        "img_token_id": vocabulary.codes_follow,
        "boi_token_id": vocabulary.vision_start,
        "eoi_token_id": vocabulary.vision_end,
        "eol_token_id": vocabulary.end_of_line,
        "eof_token_id": vocabulary.end_of_frame,
    }


def check_fields(
    where: str, values: Mapping[str, Any], read: Collection[str], needs: Mapping[str, Any]
) -> None:
    """Refuse a field that nobody reads, and one that has not the only value supported.

    Args:
        where: the file, and the part of it.
        read: fields whose values the caller takes.
        needs: fields that must have this value, where they are given.

    Raises:
        InputError: names the field.
    """
    for name, value in values.items():
        if name in needs:
            if value != needs[name]:
                raise InputError(f"{where}{name} is {value}; only {needs[name]} is supported")
        elif name not in read and name not in _WITHOUT_EFFECT and value is not None:
            raise InputError(
                f"{where}{name} is {value!r}; nothing here reads it, so the model may be another; "
                "give a folder without such a field"
            )


def check_tokens(where: str, values: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    """Refuse another id of a special token. Raises InputError."""
    for name, token in token_fields(vocabulary).items():
        given = values.get(name)
        if given not in (None, token, [token]):
            raise InputError(
                f"{where}{name} {given} is not a vocabulary of Emu3's kind; expected {name} {token}"
            )


def check_vocabulary_map(path: Path, given: Mapping[str, Any], ours: Mapping[str, int]) -> None:
    """Refuse a vocabulary map by which transformers would read codes as other tokens.

    Names that it does not look up may be there.

    Raises:
        InputError: names the first entry that differs or is missing.
    """
    codes = [name for name in given if name.startswith("<|visual token")]
    for name in [*ours, *codes]:
        if given.get(name) != ours.get(name):
            raise InputError(
                f"{path}: vocabulary_map gives {name} {given.get(name, 'no id')}; expected "
                f"{ours.get(name, 'no such code')}, by vocab_size"
            )
