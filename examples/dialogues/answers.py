"""Asks a model the questions of prepared dialogues, and counts exact answers.

python examples/dialogues/answers.py CHECKPOINT DATA [--json FILE] [--show N]
    [--picture FILE --tokenizer FOLDER]

DATA is the `out` of a prepare recipe. Of each dialogue the last answer is left to the model, which
sees what stands before it; it takes the likeliest token each time. `--picture` draws some of the
questions with their images, as the vision tokenizer decodes them, and answers.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from asked import Asked, draw, score

from emu3_megatron import parallel
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.generation.generator import generate
from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Document, Vision, parse
from emu3_megatron.model.opening import open_decoder
from emu3_megatron.prepare.pipeline import manifest_vocabulary, read_manifest
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary

GREEDY = SamplingSettings(guidance=1.0, temperature=0.0)
AT_ONCE = 64


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("checkpoint", type=Path)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--show", type=int, default=5, help="wrong answers to print")
    arguments.add_argument("--json", type=Path, help="file to write the counts to")
    arguments.add_argument("--picture", type=Path, help="PNG to draw questions and answers to")
    arguments.add_argument("--tokenizer", type=Path, help="of the images; --picture needs it")
    given = arguments.parse_args()
    if given.picture and not given.tokenizer:
        arguments.error("--picture needs --tokenizer")
    asked = ask_all(given.checkpoint, given.data)
    counts = json.dumps(score(asked), indent=2, ensure_ascii=False)
    print(counts)
    if given.json:
        given.json.write_text(counts + "\n", encoding="utf-8")
    for one in [one for one in asked if not one.is_exact][: given.show]:
        print(f"{one.question!r}: {one.said!r}, right is {one.right!r}")
    if given.picture:
        draw(asked, VisionTokenizer.load(given.tokenizer)).save(given.picture)


def ask_all(checkpoint: Path, data: Path) -> list[Asked]:
    mesh = parallel.start()
    mesh.seed(0, 0)
    decoder, _ = open_decoder(checkpoint, mesh)
    vocabulary, documents = read(data)
    asked = []
    for first in range(0, len(documents), AT_ONCE):
        some = documents[first : first + AT_ONCE]
        requests = [Request(prompt_of(document), stop=(vocabulary.eos,)) for document in some]
        answers = generate(decoder, vocabulary, requests, GREEDY, max_tokens=32)
        asked += [
            asked_of(vocabulary, document, vocabulary.decode(answer))
            for document, answer in zip(some, answers, strict=True)
        ]
    return asked


def read(data: Path) -> tuple[Vocabulary, list[Document]]:
    manifest = read_manifest(data)
    vocabulary = manifest_vocabulary(manifest)
    shards = [data / "shards" / s["name"] for s in manifest["kinds"]["dialogues"]["shards"]]
    stores = [TokenStore(shard, vocabulary) for shard in shards]
    return vocabulary, [store.document(i) for store in stores for i in range(len(store))]


def prompt_of(document: Document) -> np.ndarray:
    return np.concatenate([span.tokens for span in document.spans[:-1]])


def asked_of(vocabulary: Vocabulary, document: Document, said: str) -> Asked:
    parts = parse(vocabulary, prompt_of(document))
    text = "".join(part if isinstance(part, str) else "<image>" for part in parts)
    question = text.rpartition("USER: ")[2].removesuffix(". ASSISTANT:")
    images = [part.codes[0] for part in parts if isinstance(part, Vision)]
    right = vocabulary.decode(document.spans[-1].tokens)
    return Asked(question, right, said, images[0] if images else None)


if __name__ == "__main__":
    main()
