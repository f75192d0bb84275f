"""PREFIX.json: what a token shard holds, and by what packs recognise it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from emu3_megatron.data.index import map_index
from emu3_megatron.errors import InputError
from emu3_megatron.vocabulary import Vocabulary

_CHUNK = 1 << 24  # bytes


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
    content: str  # blake2b of .bin, then .idx

    @classmethod
    def describe(cls, data: Path, index: Path, vocabulary: Vocabulary) -> "Sidecar":
        """Read both files of a shard from end to end."""
        digest = hashlib.blake2b(digest_size=32)
        smallest, largest = 2**31 - 1, -(2**31)
        with data.open("rb") as file:
            while block := file.read(_CHUNK):
                digest.update(block)
                tokens = np.frombuffer(block, np.int32)
                smallest = min(smallest, int(tokens.min()))
                largest = max(largest, int(tokens.max()))
        digest.update(index.read_bytes())
        arrays = map_index(index)
        return cls(
            vocabulary=vocabulary.fingerprint(),
            documents=len(arrays.first_sequences) - 1,
            sequences=len(arrays.lengths),
            tokens=arrays.num_tokens,
            smallest_id=smallest,
            largest_id=largest,
            bin_bytes=data.stat().st_size,
            idx_bytes=index.stat().st_size,
            content=digest.hexdigest(),
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, prefix: str | Path) -> "Sidecar | None":
        """The sidecar of a shard; None when it has none, as shards that Megatron wrote."""
        path = shard_file(prefix, "json")
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            raise InputError(f"{path}: not the sidecar of a token shard; copy it again") from None

    def check(self, prefix: str | Path, vocabulary: Vocabulary) -> None:
        """Raises InputError when the files have other sizes or the vocabulary is another."""
        path = shard_file(prefix, "json")
        if self.vocabulary != vocabulary.fingerprint():
            raise InputError(
                f"{path}: written with another vocabulary ({self.vocabulary[:12]}…, this one is "
                f"{vocabulary.fingerprint()[:12]}…); use the model it was prepared for"
            )
        for suffix, expected in (("idx", self.idx_bytes), ("bin", self.bin_bytes)):
            file = shard_file(prefix, suffix)
            if (actual := file.stat().st_size) != expected:
                raise InputError(
                    f"{file}: {actual:,} bytes, expected {expected:,} by {path.name}; "
                    "copy the shard again or make it anew"
                )
