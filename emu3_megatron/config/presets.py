"""Model sizes by name; `emu3-8b` is the paper's (arXiv 2409.18869, table 3)."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "emu3-8b": {
        "layers": 32,
        "hidden": 4096,
        "heads": 32,
        "kv_heads": 8,
        "ffn": 14_336,
        "text": "qwen",
        "codes": 32_768,
    },
    # One GPU, or a CPU with patience, at the real vocabulary: 189M of its 230M parameters are
    # embedding and head.
    "emu3-mini": {
        "layers": 12,
        "hidden": 512,
        "heads": 8,
        "kv_heads": 2,
        "ffn": 1792,
        "text": "qwen",
        "codes": 32_768,
    },
    # The demo and the tests: wide and shallow learns a few images by heart soonest.
    "emu3-tiny": {
        "layers": 2,
        "hidden": 256,
        "heads": 4,
        "kv_heads": 2,
        "ffn": 768,
        "text": "bytes",
        "codes": 512,
    },
}
