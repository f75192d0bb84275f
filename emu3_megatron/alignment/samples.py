"""Folders of samples: several images, clips or answers for each prompt, kept as tokens.

FOLDER/
  samples.bin, .idx, .json   the tokens, as a shard: document i is line i of samples.jsonl
  samples.jsonl              a record for each sample: prompt, number, seed
  media/                     what people look at: PNG, MP4, text
  manifest.json              checkpoint, vocabulary, sampler settings; written last
  votes-…, imported-….jsonl  votes (alignment/votes.py)

The tokens are the record: training reads them as they were drawn, and never encodes the media.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.data.shards.writer import Block, write_shard
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing, write_json
from emu3_megatron.generation.files.prompts import Kind
from emu3_megatron.grammar import Document
from emu3_megatron.vocabulary import ByteEncoding, QwenEncoding, Vocabulary

FORMAT = "emu3-megatron/samples/1"
MANIFEST = "manifest.json"
RECORDS = "samples.jsonl"
SHARD = "samples"  # prefix of the shard's files

_SUFFIXES: dict[Kind, str] = {"image": ".png", "clip": ".mp4", "text": ".txt"}


@dataclass(frozen=True)
class Sample:
    """One drawing or answer.

    Attributes:
        prompt: number of its prompt in the file of prompts, from 0.
        sample: its number among the samples of the prompt, from 0.
        text: the prompt.
        seed: of its draws: `emu3 generate image --seed` draws the same image again.
    """

    prompt: int
    sample: int
    text: str
    kind: Kind
    seed: int

    @property
    def id(self) -> str:
        """By which votes name it: `12-3` is sample 3 of prompt 12."""
        return f"{self.prompt}-{self.sample}"

    @property
    def media(self) -> str:
        """Path inside the folder of what people look at."""
        return f"media/{self.id}{_SUFFIXES[self.kind]}"


class Samples:
    """A finished folder of samples.

    Attributes:
        about: what the manifest says.
        prompts: the samples of each prompt, in order.

    Raises:
        InputError: not a folder of samples, unfinished, damaged, or of another version.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.about = _read_manifest(folder)
        records = _read_records(folder / RECORDS, self.about["records"])
        self.prompts: list[list[Sample]] = []
        for sample in records:
            if sample.prompt == len(self.prompts):
                self.prompts.append([])
            self.prompts[sample.prompt].append(sample)
        self._first = [0]
        for samples in self.prompts:
            self._first.append(self._first[-1] + len(samples))

    def __len__(self) -> int:
        """Number of samples."""
        return self._first[-1]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The one that the tokens belong to; raises InputError when this version knows no such."""
        encoding = QwenEncoding() if self.about["text"] == "qwen" else ByteEncoding()
        vocabulary = Vocabulary(encoding, self.about["codes"])
        if vocabulary.fingerprint() != self.about["vocabulary"]:
            raise InputError(
                f"{self.folder / MANIFEST}: names a vocabulary that this version does not know; "
                "use the version of emu3 that drew the samples"
            )
        return vocabulary

    @cached_property
    def store(self) -> TokenStore:
        """The tokens; raises InputError when the shard is damaged or not the manifest's."""
        store = TokenStore(self.folder / SHARD, self.vocabulary)
        if store.sidecar is None or store.sidecar.content != self.about["content"]:
            raise InputError(
                f"{self.folder / SHARD}.json: not the shard that {MANIFEST} names; "
                "copy the folder of samples again"
            )
        return store

    def document(self, prompt: int, sample: int) -> Document:
        """The tokens of a sample as they were drawn: the prompt as context, then the sample."""
        return self.store.document(self._first[prompt] + sample)


def write_samples(
    folder: Path,
    vocabulary: Vocabulary,
    samples: Sequence[Sample],
    blocks: Iterable[Block],
    about: dict[str, Any],
) -> None:
    """Write the shard, the records and, last, the manifest, by which the folder is finished.

    Args:
        blocks: the documents of all samples, in order.
        about: what else the manifest says; JSON.
    """
    write_shard(folder / SHARD, vocabulary, blocks)
    with replacing(folder / RECORDS) as beside:
        lines = (json.dumps(asdict(sample), ensure_ascii=False) for sample in samples)
        beside.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    manifest = {
        "format": FORMAT,
        **about,
        "vocabulary": vocabulary.fingerprint(),
        "text": vocabulary.encoding.name,
        "codes": vocabulary.num_codes,
        "prompts": samples[-1].prompt + 1,
        "samples": len(samples),
        "records": _digest(folder / RECORDS),
        "content": TokenStore(folder / SHARD, vocabulary).sidecar.content,  # type: ignore[union-attr]
    }
    write_json(folder / MANIFEST, manifest)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder}: no finished folder of samples, {MANIFEST} is missing; "
            "run emu3 preferences sample to its end"
        ) from None
    except ValueError:
        raise InputError(f"{path}: damaged, it is not JSON; copy the folder again") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError(f"{folder}: not a folder of samples of this version, by its {MANIFEST}")
    return about


def _read_records(path: Path, digest: str) -> list[Sample]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: missing; copy the folder of samples again") from None
    if _digest(path) != digest:
        raise InputError(
            f"{path}: not what was written (SHA-256 differs from {MANIFEST}'s); "
            "copy the folder of samples again"
        )
    return [Sample(**json.loads(line)) for line in text.splitlines()]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
