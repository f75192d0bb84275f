"""A small folder of samples, of random codes, and votes on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from emu3_megatron import grammar
from emu3_megatron.alignment.samples import Kind, Sample, write_samples
from emu3_megatron.data.shards.writer import block_of
from emu3_megatron.grammar import Document, Meta, Span
from emu3_megatron.media.writers import write_clip
from emu3_megatron.vocabulary import ByteEncoding, Vocabulary

VOCABULARY = Vocabulary(ByteEncoding(), 600)


def image_document(text: str, codes_hw: np.ndarray) -> Document:
    """As a sample is stored: the prompt as context, the image, EOS."""
    vision = grammar.vision_span(VOCABULARY, Meta(*codes_hw.shape), codes_hw[None])
    prompt = np.append(VOCABULARY.bos, VOCABULARY.encode(text)).astype(np.int32)
    eos = np.array([VOCABULARY.eos], np.int32)
    return Document((Span(prompt, trained=False), Span(vision), Span(eos)))


def make_samples(
    folder: Path,
    prompts: int = 3,
    each: int = 4,
    media: bool = True,
    kind: Kind = "image",
    name: str = "a cat",
) -> Path:
    """Images of 2 x 3 codes for prompts named `a cat 0`, `a cat 1` and so on.

    Args:
        kind: of the media; the tokens are those of images.
    """
    random = np.random.default_rng(0)
    samples, documents = [], []
    for number in range(prompts * each):
        prompt, sample = divmod(number, each)
        samples.append(Sample(prompt, sample, f"{name} {prompt}", kind, seed=number))
        documents.append(image_document(samples[-1].text, random.integers(0, 600, (2, 3))))
        if media:
            _write_media(folder / samples[-1].media, samples[-1], random)
    write_samples(folder, VOCABULARY, samples, [block_of(documents)], {"sampler": {"seed": 0}})
    return folder


def _write_media(path: Path, sample: Sample, random: np.random.Generator) -> None:
    """Something to look at: one colour, or what the sample is called."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = random.integers(0, 256, 3)
    if sample.kind == "text":
        path.write_text(f"answer {sample.id}", encoding="utf-8")
    elif sample.kind == "image":
        Image.new("RGB", (24, 16), tuple(colour.tolist())).save(path)
    else:
        pixels_c = torch.from_numpy(colour) / 127.5 - 1
        write_clip(path, pixels_c[None, :, None, None].expand(8, 3, 16, 24), fps=8)


def add_votes(folder: Path, voter: str, votes: dict[int, Any]) -> Path:
    """Append lines as the page writes them: (best, worst), or None for no difference."""
    path = folder / f"votes-{voter}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        for moment, (prompt, vote) in enumerate(votes.items()):
            said = {"no_difference": True} if vote is None else {"best": vote[0], "worst": vote[1]}
            record = {"time": moment, "voter": voter, "prompt": prompt, **said}
            file.write(json.dumps(record) + "\n")
    return path


def add_lines(folder: Path, name: str, *records: Any) -> Path:
    """Append lines to a file of votes, whatever they say."""
    path = folder / name
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path
