"""Asks a model the questions of prepared dialogues, and counts exact answers.

python examples/dialogues/answers.py CHECKPOINT DATA [--json FILE] [--show N]

DATA is the `out` of a prepare recipe. Of each dialogue the last answer is left to the model, which
sees what stands before it; it takes the likeliest token each time.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from emu3_megatron import parallel
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.generation.generator import Request, generate
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Document, parse
from emu3_megatron.model.opening import open_decoder
from emu3_megatron.prepare.pipeline import manifest_vocabulary, read_manifest
from emu3_megatron.vocabulary import Vocabulary

GREEDY = SamplingSettings(guidance=1.0, temperature=0.0)
AT_ONCE = 64


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("checkpoint", type=Path)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--show", type=int, default=5, help="wrong answers to print")
    arguments.add_argument("--json", type=Path, help="file to write the counts to")
    given = arguments.parse_args()
    mesh = parallel.start()
    mesh.seed(0, 0)
    decoder, _ = open_decoder(given.checkpoint, mesh)
    vocabulary, documents = read(given.data)
    found = []
    for first in range(0, len(documents), AT_ONCE):
        some = documents[first : first + AT_ONCE]
        requests = [Request(prompt_of(document), stop=(vocabulary.eos,)) for document in some]
        answers = generate(decoder, vocabulary, requests, GREEDY, max_tokens=32)
        found += [
            (question_of(vocabulary, document), answer_of(vocabulary, document), text)
            for document, text in zip(some, map(vocabulary.decode, answers), strict=True)
        ]
    counts = json.dumps(score(found), indent=2, ensure_ascii=False)
    print(counts)
    if given.json:
        given.json.write_text(counts + "\n")
    for question, right, said in [row for row in found if row[1] != row[2]][: given.show]:
        print(f"{question!r}: {said!r}, right is {right!r}")


def read(data: Path) -> tuple[Vocabulary, list[Document]]:
    manifest = read_manifest(data)
    vocabulary = manifest_vocabulary(manifest)
    shards = [data / "shards" / s["name"] for s in manifest["kinds"]["dialogues"]["shards"]]
    stores = [TokenStore(shard, vocabulary) for shard in shards]
    return vocabulary, [store.document(i) for store in stores for i in range(len(store))]


def prompt_of(document: Document) -> np.ndarray:
    return np.concatenate([span.tokens for span in document.spans[:-1]])


def answer_of(vocabulary: Vocabulary, document: Document) -> str:
    return vocabulary.decode(document.spans[-1].tokens)


def question_of(vocabulary: Vocabulary, document: Document) -> str:
    parts = parse(vocabulary, prompt_of(document))
    text = "".join(part if isinstance(part, str) else "<image>" for part in parts)
    return text.rpartition("USER: ")[2].removesuffix(". ASSISTANT:")


def score(found: list[tuple[str, str, str]]) -> dict[str, Any]:
    """Share of exact answers, of all and of each question."""
    asked = Counter(question for question, _, _ in found)
    exact = Counter(question for question, expected, said in found if said == expected)
    return {
        "questions": len(found),
        "exact": round(exact.total() / len(found), 4),
        "by_question": {
            question: round(exact[question] / asked[question], 4) for question in asked
        },
    }


if __name__ == "__main__":
    main()
