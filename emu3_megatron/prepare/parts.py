"""Parts, which hold the documents of one task, and shards, which are parts joined in order."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emu3_megatron.data.shards.sidecar import Sidecar, shard_file
from emu3_megatron.data.shards.writer import Block, block_of, write_shard
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing
from emu3_megatron.grammar import Document
from emu3_megatron.vocabulary import Vocabulary

HASH_BYTES = 16

Skipped = tuple[str, str]
"""Name of an item that could not be used, and why."""


Origin = tuple[str, int, int]
"""Name of a file, its documents in a part, and how many of its texts could not be used."""


@dataclass(frozen=True)
class Part:
    """Documents of one task.

    Attributes:
        tokens: of all documents, int32 [tokens].
        lengths: of each span, int32 [spans].
        modes: of each span, int8 [spans].
        spans: of each document, int32 [documents].
        hashes: what makes two documents the same, uint8 [documents, 16]; [0, 16] where duplicates
            were left out before.
        inputs: hash of what went in.
        skipped: what could not be used.
        signatures: by which near duplicates of documents are found, where they are wanted.
        names: of documents that have signatures.
        origins: of text each file with how many documents come from it, in order, and how many
            texts of it could not be used.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    modes: np.ndarray
    spans: np.ndarray
    hashes: np.ndarray
    inputs: str
    skipped: tuple[Skipped, ...] = ()
    signatures: np.ndarray | None = None
    names: tuple[str, ...] = ()
    origins: tuple[Origin, ...] = ()

    @classmethod
    def of(
        cls, documents: Sequence[Document], inputs: str, skipped: tuple[Skipped, ...] = ()
    ) -> "Part":
        return cls(
            **block_of(documents)._asdict(),
            hashes=np.empty((0, HASH_BYTES), np.uint8),
            inputs=inputs,
            skipped=skipped,
        )

    def write(self, path: Path) -> None:
        about = json.dumps(
            {"inputs": self.inputs, "skipped": self.skipped, "origins": self.origins}
        )
        near: dict[str, Any] = {} if self.signatures is None else self._near(self.signatures)
        with replacing(path) as beside, beside.open("wb") as file:
            np.savez(
                file,
                tokens=self.tokens,
                lengths=self.lengths,
                modes=self.modes,
                spans=self.spans,
                hashes=self.hashes,
                about=np.frombuffer(about.encode(), np.uint8),
                **near,
            )

    def _near(self, signatures: np.ndarray) -> dict[str, Any]:
        names = np.frombuffer(json.dumps(self.names).encode(), np.uint8)
        return {"signatures": signatures, "names": names}

    @classmethod
    def read(cls, path: Path) -> "Part":
        with np.load(path) as arrays:
            about = json.loads(arrays["about"].tobytes())
            names = ("tokens", "lengths", "modes", "spans", "hashes")
            values = {name: arrays[name] for name in names}
        return cls(**values, inputs=about["inputs"], skipped=_skipped(about))

    def select(self, kept: np.ndarray) -> "Part":
        """The documents for which `kept`, bool [documents], says so."""
        if kept.all():
            return self
        spans = np.repeat(kept, self.spans)
        return Part(
            tokens=self.tokens[np.repeat(spans, self.lengths)],
            lengths=self.lengths[spans],
            modes=self.modes[spans],
            spans=self.spans[kept],
            hashes=self.hashes[kept] if len(self.hashes) else self.hashes,
            inputs=self.inputs,
            skipped=self.skipped,
        )


def read_signatures(path: Path) -> np.ndarray:
    with np.load(path) as arrays:
        return arrays["signatures"]


def read_names(path: Path) -> list[str]:
    with np.load(path) as arrays:
        return json.loads(arrays["names"].tobytes())


def _skipped(about: dict[str, Any]) -> tuple[Skipped, ...]:
    return tuple(map(as_skipped, about["skipped"]))


def as_skipped(found: str | Sequence[str]) -> Skipped:
    """Earlier versions wrote one line, `NAME: REASON`."""
    name, reason = found.split(": ", 1) if isinstance(found, str) else found
    return name, reason


@dataclass(frozen=True)
class PartSummary:
    """What planning shards needs of a part; the tokens stay on the disk."""

    path: Path
    inputs: str
    skipped: tuple[Skipped, ...]
    document_tokens: np.ndarray
    kept: np.ndarray  # bool [documents]
    hashes: np.ndarray  # uint8 [documents, 16], or none
    origins: tuple[Origin, ...] = ()

    @property
    def num_bytes(self) -> int:
        return 4 * int(self.document_tokens[self.kept].sum())


def summarise(paths: Iterable[Path]) -> list[PartSummary]:
    """Summaries of parts, in order; of equal documents the first is kept."""
    seen: set[bytes] = set()
    return [_summarise(path, seen) for path in paths]


def _summarise(path: Path, seen: set[bytes]) -> PartSummary:
    with np.load(path) as arrays:  # reads those that are named
        about = json.loads(arrays["about"].tobytes())
        document_tokens = _document_tokens(arrays["lengths"], arrays["spans"])
        hashes = arrays["hashes"]
    kept = np.ones(len(document_tokens), bool)
    for number, key in enumerate(hashes.view(f"V{HASH_BYTES}").ravel().tolist()):
        if key in seen:
            kept[number] = False
        else:
            seen.add(key)
    origins = tuple((name, texts, bad) for name, texts, bad in about.get("origins", ()))
    skipped = _skipped(about)
    return PartSummary(path, about["inputs"], skipped, document_tokens, kept, hashes, origins)


def _document_tokens(lengths: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Tokens of each document, int64 [documents]."""
    firsts = np.cumsum(spans) - spans
    return np.add.reduceat(lengths.astype(np.int64), firsts) if len(firsts) else firsts


@dataclass(frozen=True)
class Sifted:
    """Parts, of which documents are left out or held out.

    Attributes:
        near: documents that were left out, each with the one of which it is a near duplicate.
    """

    trained: list[PartSummary]
    held_out: list[PartSummary]
    near: list[Skipped]


@dataclass(frozen=True)
class ShardTask:
    """One shard to write.

    Attributes:
        prefix: named by a hash of its inputs and the settings.
    """

    prefix: Path
    parts: list[PartSummary]

    @property
    def size(self) -> int:
        return sum(part.num_bytes for part in self.parts)


def plan_shards(
    folder: Path, kind: str, settings: str, parts: Sequence[PartSummary], shard_bytes: int
) -> list[ShardTask]:
    """Parts in order, as many to a shard as its size takes, at least one."""
    groups: list[list[PartSummary]] = []
    free = 0
    for part in parts:
        if not part.num_bytes:
            continue
        if not groups or part.num_bytes > free:
            groups.append([])
            free = shard_bytes
        groups[-1].append(part)
        free -= part.num_bytes
    return [
        ShardTask(folder / f"{kind}-{number:05d}-{_name(settings, group)}", group)
        for number, group in enumerate(groups)
    ]


def _name(settings: str, parts: Sequence[PartSummary]) -> str:
    digest = hashlib.blake2b(settings.encode(), digest_size=6)
    for part in parts:
        digest.update(part.inputs.encode())
        digest.update(np.packbits(part.kept).tobytes())
    return digest.hexdigest()


class WriteShard:
    """Writes one shard of its parts."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary

    def __call__(self, task: ShardTask) -> None:
        parts = (Part.read(part.path).select(part.kept) for part in task.parts)
        blocks = (Block(part.tokens, part.lengths, part.modes, part.spans) for part in parts)
        write_shard(task.prefix, self._vocabulary, blocks)


def is_whole(prefix: Path) -> bool:
    """Was this shard written to its end? Its .idx comes last."""
    if not shard_file(prefix, "idx").is_file():
        return False
    try:
        sidecar = Sidecar.read(prefix)
    except InputError:
        return False
    data = shard_file(prefix, "bin")
    return sidecar is not None and data.is_file() and data.stat().st_size == sidecar.bin_bytes
