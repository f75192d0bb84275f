"""The file PREFIX.json: what a token shard holds, and the hash by which packs recognise it."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from emu3_megatron.data.shards.index import TOKEN_BYTES, map_index
from emu3_megatron.errors import InputError
from emu3_megatron.vocabulary import Vocabulary

_CHUNK = 1 << 20  # bytes, which stay in a core's cache while they are looked at


def shard_file(prefix: str | Path, suffix: str) -> Path:
    """PREFIX.bin, PREFIX.idx or PREFIX.json; a prefix may have dots of its own."""
    return Path(f"{prefix}.{suffix}")


@dataclass(frozen=True)
class Sidecar:
    vocabulary: str  # fingerprint
    documents: int
    sequences: int
    tokens: int
    smallest_id: int
    largest_id: int
    bin_bytes: int
    idx_bytes: int
    content: str  # SHA-256 of .bin, then .idx
    group: int | None = None  # so many documents in a row belong together

    @classmethod
    def describe(cls, data: Path, index: Path, vocabulary: Vocabulary) -> "Sidecar":
        """Read both files of a shard from end to end; a bar shows once that takes a while."""
        content = Content()
        bar = tqdm(
            desc=data.name,
            total=data.stat().st_size,
            unit="B",
            unit_scale=True,
            delay=1,
            leave=False,
            disable=None,
        )
        with data.open("rb") as file, bar:
            while block := file.read(_CHUNK):
                content.add(np.frombuffer(block, np.int32))
                bar.update(len(block))
        return content.sidecar(index, vocabulary)

    def to_json(self) -> str:
        values = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def read(cls, prefix: str | Path) -> "Sidecar | None":
        """The sidecar of a shard; None when it has none, as shards that Megatron wrote."""
        path = shard_file(prefix, "json")
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            raise InputError(f"{path}: not the sidecar of a token shard; copy it again") from None

    def check(self, prefix: str | Path, vocabulary: Vocabulary) -> None:
        """Raises InputError when the files are not what it tells, or the vocabulary is another."""
        path = shard_file(prefix, "json")
        if self.vocabulary != vocabulary.fingerprint():
            raise InputError(
                f"{path}: written with another vocabulary ({self.vocabulary[:12]}…, this one is "
                f"{vocabulary.fingerprint()[:12]}…); use the model it was prepared for, or, if the "
                "tokens are of this one, emu3 pack --model --relabel"
            )
        for suffix, expected in (("idx", self.idx_bytes), ("bin", self.bin_bytes)):
            file = shard_file(prefix, suffix)
            if (actual := file.stat().st_size) != expected:
                raise InputError(
                    f"{file}: {actual:,} bytes, expected {expected:,} by {path.name}; "
                    "copy the shard again or make it anew"
                )
        if self.group is not None and (self.group < 2 or self.documents % self.group):
            raise InputError(
                f"{path}: {self.documents:,} documents are no groups of {self.group}; "
                "make the shard anew"
            )


class Content:
    """What tokens a .bin holds, learned from each stretch as it is written or read.

    Attributes:
        smallest, largest: of the ids so far.
    """

    def __init__(self) -> None:
        # Most CPUs have instructions for SHA-256; with them it is twice as fast as BLAKE2b.
        self._digest = hashlib.sha256()
        self._tokens = 0
        self.smallest, self.largest = 2**31 - 1, -(2**31)

    def add(self, tokens: np.ndarray) -> None:
        """Take the next ids, int32 [n], contiguous."""
        for chunk in stretches(tokens):
            self._digest.update(chunk.data)
            self.smallest = min(self.smallest, int(chunk.min()))
            self.largest = max(self.largest, int(chunk.max()))
        self._tokens += len(tokens)

    def sidecar(self, index: Path, vocabulary: Vocabulary, group: int | None = None) -> Sidecar:
        """What to write beside the tokens; once, when all are added and the .idx is written."""
        self._digest.update(index.read_bytes())
        arrays = map_index(index)
        return Sidecar(
            vocabulary=vocabulary.fingerprint(),
            documents=len(arrays.first_sequences) - 1,
            sequences=len(arrays.lengths),
            tokens=arrays.num_tokens,
            smallest_id=self.smallest,
            largest_id=self.largest,
            bin_bytes=self._tokens * TOKEN_BYTES,
            idx_bytes=index.stat().st_size,
            content=self._digest.hexdigest(),
            group=group,
        )


def stretches(tokens: np.ndarray) -> Iterator[np.ndarray]:
    """An array of int32 in pieces that a core's cache holds."""
    step = _CHUNK // TOKEN_BYTES
    return (tokens[first : first + step] for first in range(0, len(tokens), step))
