"""Writes the text tokenizer as files for transformers and for BAAI's remote code.

transformers' own converter writes GPT-2's pattern and no normalization, which gives other ids for
tabs, for punctuation before a newline, for code, and for text that is not in NFC. These files give
BAAI's ids everywhere.
"""

import base64
import json
from pathlib import Path
from typing import Any

from emu3_megatron.vocabulary import SYSTEM_TEXT, TextEncoding, Vocabulary

# `{image_prompt}{text_prompt}.` with the full stop that transformers' template drops, and further
# turns as in `grammar.dialogue`.
CHAT_TEMPLATE = (
    "{%- macro show(content) -%}"
    "{%- if content is string -%}{{ content }}"
    "{%- else -%}{%- for part in content -%}"
    "{%- if part['type'] == 'image' -%}<|extra_0|>{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
    "{%- if messages[0]['role'] != 'system' -%}" + SYSTEM_TEXT + "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ show(message['content']) }}"
    "{%- elif message['role'] == 'user' -%}"
    "{{ ' USER: ' }}{{ show(message['content']) }}{{ '. ASSISTANT:' }}"
    "{%- else -%}{{ show(message['content']) }}<|extra_204|>"
    "{%- endif -%}"
    "{%- endfor -%}"
)
_PIXELS = {"min_pixels": 512 * 512, "max_pixels": 1024 * 1024, "spatial_factor": 8}
_BAAI = "BAAI/Emu3-Gen"
_BAAI_VISION = "BAAI/Emu3-VisionTokenizer"


def transformers_tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """`tokenizer.json` and `tokenizer_config.json`, by file name."""
    return {
        "tokenizer.json": _fast_tokenizer(vocabulary),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "bos_token": "<|extra_203|>",
            "eos_token": "<|extra_204|>",
            "pad_token": "<|endoftext|>",
            # What transformers' Emu3Processor asks its tokenizer for. It would call the
            # placeholder <image>, which BAAI's tokenizer reads as plain text.
            "extra_special_tokens": {
                "image_token": "<|extra_0|>",
                "boi_token": "<|image start|>",
                "eoi_token": "<|image end|>",
                "image_wrapper_token": "<|image token|>",
                "eof_token": "<|extra_201|>",
            },
        },
    }


def transformers_processor() -> dict[str, Any]:
    """What Emu3Processor needs besides; its class's own default mean and deviation are CLIP's."""
    return {
        "preprocessor_config.json": {
            "image_processor_type": "Emu3ImageProcessor",
            "processor_class": "Emu3Processor",
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            **_PIXELS,
        },
        "processor_config.json": {"processor_class": "Emu3Processor"},
    }


def baai_tokenizer(vocabulary: Vocabulary, folder: Path) -> dict[str, Any]:
    """Write `emu3.tiktoken` and `emu3_vision_tokens.txt`; return `tokenizer_config.json`."""
    lines = [
        b"%s %d\n" % (base64.b64encode(token), rank)
        for rank, token in enumerate(vocabulary.encoding.tokens())
    ]
    (folder / "emu3.tiktoken").write_bytes(b"".join(lines))
    vision = vocabulary.surfaces()[vocabulary.codes_follow - vocabulary.num_text :]
    (folder / "emu3_vision_tokens.txt").write_text(
        "".join(f"{token}\n" for token in vision), encoding="utf-8"
    )
    return {
        "tokenizer_config.json": {
            "tokenizer_class": "Emu3Tokenizer",
            "auto_map": {"AutoTokenizer": [f"{_BAAI}--tokenization_emu3.Emu3Tokenizer", None]},
        }
    }


def baai_processor() -> dict[str, Any]:
    """The image processor beside BAAI's vision tokenizer."""
    module = "image_processing_emu3visionvq.Emu3VisionVQImageProcessor"
    return {
        "preprocessor_config.json": {
            "image_processor_type": "Emu3VisionVQImageProcessor",
            "auto_map": {"AutoImageProcessor": f"{_BAAI_VISION}--{module}"},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            **_PIXELS,
        }
    }


def _fast_tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    byte_level["use_regex"] = False
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": id,
                "content": surface,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for id, surface in enumerate(vocabulary.surfaces(), start=vocabulary.num_text)
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*_splits(vocabulary.encoding), byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": _byte_pairs(vocabulary.encoding),
    }


def _splits(encoding: TextEncoding) -> list[dict[str, Any]]:
    if encoding.split_pattern is None:
        return []
    pattern = {"Regex": encoding.split_pattern}
    return [{"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}]


def _byte_pairs(encoding: TextEncoding) -> dict[str, Any]:
    """Ranks of tiktoken as merges.

    tiktoken merges whichever neighbours make the token of least rank. So every way to make a token
    of two others is a merge of that token's rank; and a piece that is a token is left whole.
    """
    spelled = _spelling()
    spell = lambda token: "".join(spelled[byte] for byte in token)
    ranks = {token: rank for rank, token in enumerate(encoding.tokens())}
    merges = []
    for token in ranks:
        halves = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [(a, b) for a, b in halves if a in ranks and b in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [[spell(a), spell(b)] for a, b in known]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,
        "vocab": {spell(token): rank for token, rank in ranks.items()},
        "merges": merges,
    }


def _spelling() -> dict[int, str]:
    """GPT-2's printable character for each byte: itself, or the next one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(0x100 + i) for i, byte in enumerate(others)
    }


def write_files(folder: Path, files: dict[str, Any]) -> None:
    """JSON files by name."""
    for name, content in files.items():
        indent = None if name == "tokenizer.json" else 2
        (folder / name).write_text(
            json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8"
        )
