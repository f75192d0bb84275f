"""Reads the demo's prepared documents back: pictures with captions, and dialogues."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Document, Vision, parse
from emu3_megatron.prepare.pipeline import manifest_vocabulary
from emu3_megatron.prepare.workspace import read_manifest
from emu3_megatron.vocabulary import Vocabulary


@dataclass(frozen=True)
class Trained:
    """A document that begins with its caption, taken apart again."""

    caption: str
    vision: Vision


@dataclass(frozen=True)
class Asked:
    """The last question of a dialogue.

    Attributes:
        prompt: all before the answer, int32.
        picture: codes [height, width].
        question: in words.
        answer: that is right.
    """

    prompt: np.ndarray
    picture: np.ndarray
    question: str
    answer: str


def documents(data: Path, kind: str) -> tuple[Vocabulary, list[Document]]:
    """All documents of a kind that a prepared folder has, in the order of their files."""
    manifest = read_manifest(data)
    if manifest is None:
        raise InputError(f"{data}: not prepared")
    vocabulary = manifest_vocabulary(manifest)
    shards = [data / "shards" / shard["name"] for shard in manifest["kinds"][kind]["shards"]]
    stores = [TokenStore(shard, vocabulary) for shard in shards]
    return vocabulary, [store.document(i) for store in stores for i in range(len(store))]


def trained(data: Path, kind: str) -> list[Trained]:
    """The documents that begin with their caption."""
    vocabulary, found = documents(data, kind)
    parts = [parse(vocabulary, document.tokens) for document in found]
    return [
        Trained(caption, vision)
        for caption, vision, *_ in parts
        if isinstance(caption, str) and isinstance(vision, Vision)
    ]


def asked(data: Path) -> list[Asked]:
    """The last question of each dialogue."""
    vocabulary, found = documents(data, "dialogues")
    return [_asked(vocabulary, document) for document in found]


def _asked(vocabulary: Vocabulary, document: Document) -> Asked:
    prompt = np.concatenate([span.tokens for span in document.spans[:-1]])
    parts = parse(vocabulary, prompt)
    (picture,) = (part.codes[0] for part in parts if isinstance(part, Vision))
    text = "".join(part for part in parts if isinstance(part, str))
    question = text.rpartition("USER: ")[2].removesuffix(". ASSISTANT:")
    return Asked(prompt, picture, question, vocabulary.decode(document.spans[-1].tokens))
