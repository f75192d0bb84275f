"""Packs of preference pairs and recipes of DPO, so small that six steps take a second."""

from pathlib import Path
from typing import Any

import numpy as np

from emu3_megatron.config import Recipe
from emu3_megatron.data.packing.packs import pack_shards
from emu3_megatron.grammar import Document, Span, image_meta, vision_span
from support.processes import run_processes
from support.shards import write_documents
from support.steps import start
from support.tiny import VOCABULARY, tiny_recipe

CONTEXT = 256


def drawing(caption: str, codes_hw: np.ndarray) -> Document:
    """A caption, which is context, and the image that is trained."""
    image = vision_span(VOCABULARY, image_meta(codes_hw), codes_hw[None])
    return _document(caption, Span(image))


def answer(question: str, text: str) -> Document:
    """A question, which is context, and the answer that is trained."""
    return _document(question, Span(VOCABULARY.encode(text)))


def _document(prompt: str, trained: Span) -> Document:
    begin = np.concatenate([[VOCABULARY.bos], VOCABULARY.encode(prompt)]).astype(np.int32)
    end = Span(np.array([VOCABULARY.eos], np.int32))
    return Document((Span(begin, trained=False), trained, end))


def pairs_of_images(number: int, seed: int = 0) -> list[Document]:
    """Chosen and rejected in turn; their sizes differ by up to ten times."""
    random = np.random.default_rng(seed)
    sizes = [((8, 12), (2, 5)), ((2, 4), (9, 9)), ((3, 3), (3, 4)), ((4, 4), (4, 4))]
    return [
        drawing(f"number {i}", random.integers(0, VOCABULARY.num_codes, size))
        for i in range(number)
        for size in sizes[i % len(sizes)]
    ]


def pairs_of_answers(number: int) -> list[Document]:
    """Texts, the chosen ones some times as long."""
    return [
        answer(f"what is {i}", words)
        for i in range(number)
        for words in (f"{i} is a number " * (1 + i % 4), f"no {i}")
    ]


def pack_pairs(folder: Path, name: str, documents: list[Document], context: int = CONTEXT) -> Path:
    write_documents(folder / name, VOCABULARY, documents, group=2)
    pack = folder / f"{name}.pack"
    pack_shards([folder / name], pack, context, vocabulary=VOCABULARY)
    return pack


def dpo_recipe(pack: Path, folder: Path, start: Path, /, **sections: Any) -> Recipe:
    """With a live reference unless `objective` says otherwise.

    Args:
        folder: of the run.
        start: the checkpoint that the run starts from.
    """
    base: dict[str, Any] = {
        "run": {"steps": 6, "init_from": str(start)},
        "data": {"context": CONTEXT},
        "batch": {"size": 4, "micro_size": 1},
        "objective": {"kind": "dpo", "reference": {"kind": "live", "checkpoint": str(start)}},
        "optimizer": {"lr": 3e-3, "schedule": {"warmup_steps": 1}},
    }
    for key, values in sections.items():
        base[key] = {**base[key], **values} if isinstance(base.get(key), dict) else values
    return tiny_recipe(pack, folder, **base)


def save_start(pack: Path, folder: Path) -> Path:
    """A checkpoint of a decoder that took a few steps of the next-token loss."""
    data = {"context": CONTEXT}
    recipe = tiny_recipe(pack, folder / "first", data=data, batch={"size": 2, "micro_size": 1})
    run_processes(_save, 1, recipe, folder / "start")
    return folder / "start"


def _save(recipe: Recipe, folder: Path) -> None:
    steps = start(recipe)
    steps.take(0, 3)
    steps.save(folder, 3)
