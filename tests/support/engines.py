"""Recipes on the engine deepspeed, and what tests ask of its runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emu3_megatron import grammar, parallel
from emu3_megatron.checkpoints.folders import find_checkpoint
from emu3_megatron.config import Recipe
from emu3_megatron.data.packing.packs import pack_shards
from support.pairs import CONTEXT
from support.shards import write_documents
from support.steps import losses_of, start
from support.tiny import VOCABULARY


def on_deepspeed(**section: Any) -> dict[str, Any]:
    """The section of a recipe; under ZeRO 3 no weight is too small to be divided."""
    if section.get("stage") == 3:
        section["zero"] = {"stage3_param_persistence_threshold": 0}
    return {"engine": {"kind": "deepspeed", **section}}


def dialogue_pack(folder: Path) -> Path:
    """Dialogues of one to three turns; questions are context."""
    random = np.random.default_rng(0)
    documents = []
    for i in range(24):
        picture = grammar.Vision.image(random.integers(0, VOCABULARY.num_codes, (3, 4)))
        turns = [
            grammar.Turn([picture, "which number is it"] if turn == 0 else ["sure?"], f"{i}, yes")
            for turn in range(1 + i % 3)
        ]
        documents.append(grammar.dialogue(VOCABULARY, turns))
    write_documents(folder / "dialogues", VOCABULARY, documents)
    pack = folder / "dialogues.pack"
    pack_shards([folder / "dialogues"], pack, CONTEXT, vocabulary=VOCABULARY)
    return pack


def losses_of_all(recipes: Sequence[Recipe], last: int) -> list[list[float]]:
    """The first losses of each recipe, from its `run.init_from` if it has one."""
    return [_losses(recipe, last) for recipe in recipes]


def _losses(recipe: Recipe, last: int) -> list[float]:
    steps = start(recipe)
    if recipe.run.init_from:
        steps.engine.start_from(find_checkpoint(recipe.run.init_from))
    found = losses_of(steps.take(0, last))
    parallel.stop(keep_processes=True)
    return found
