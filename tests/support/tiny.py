"""A decoder, documents and a recipe so small that twenty steps take a second."""

from pathlib import Path
from typing import Any

import numpy as np

from emu3_megatron import grammar
from emu3_megatron.config import Recipe
from emu3_megatron.data.packing.packs import pack_shards
from emu3_megatron.grammar import Document
from emu3_megatron.vocabulary import ByteEncoding, Vocabulary
from support.shards import write_documents

# 256 + 211 + 600 = 1,067 ids: tensor parallel sizes 1 and 2 pad them to different numbers of rows.
VOCABULARY = Vocabulary(ByteEncoding(), 600)
CONTEXT = 128


def make_packs(folder: Path, seed: int = 0, context: int = CONTEXT) -> Path:
    """Packs of captioned images, understanding, text and dialogue; several documents in each."""
    random = np.random.default_rng(seed)
    documents: list[Document] = []
    for i in range(24):
        codes = random.integers(0, 600, random.integers(2, 6, size=2))
        text = "words " * int(random.integers(1, 12))
        question = [grammar.Vision.image(codes), "which number is it"]
        turns = [grammar.Turn(question, f"{i}")]
        documents += [
            grammar.captioned_image(VOCABULARY, f"number {i}", codes),
            grammar.understanding(VOCABULARY, codes, f"it is {i}"),
            grammar.plain_text(VOCABULARY, text),
            grammar.dialogue(VOCABULARY, turns),
        ]
    write_documents(folder / "shard", VOCABULARY, documents)
    pack_shards([folder / "shard"], folder / "tiny.pack", context, vocabulary=VOCABULARY)
    return folder / "tiny.pack"


def tiny_recipe(pack: Path, folder: Path, /, **sections: Any) -> Recipe:
    """Sections replace or extend those of the base recipe."""
    base: dict[str, Any] = {
        "run": {"dir": str(folder), "steps": 20, "log_every": 1},
        "model": {
            "preset": "emu3-tiny",
            "hidden": 32,
            "ffn": 64,
            "codes": VOCABULARY.num_codes,
            "dropout": 0.0,
        },
        "data": {
            "context": CONTEXT,
            "sources": [{"pack": str(pack)}],
            "null_prompt": 0,
            "workers": 0,
        },
        "batch": {"size": 8, "micro_size": 2},
        "optimizer": {"lr": 1e-2, "schedule": {"warmup_steps": 2}},
        "precision": "fp32",
    }
    for name, values in sections.items():
        base[name] = {**base[name], **values} if isinstance(base.get(name), dict) else values
    return Recipe.model_validate(base)
