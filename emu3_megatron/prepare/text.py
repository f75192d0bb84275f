"""Data pipeline of text: ranges of files to tokens; of equal texts the first is kept."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from emu3_megatron.config.prepare import TextConfig
from emu3_megatron.data.shards.store import TRAINED
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.items import Failed, attempt, attempt_each
from emu3_megatron.prepare.near_texts import text_signatures
from emu3_megatron.prepare.parts import HASH_BYTES, Part, Skipped
from emu3_megatron.prepare.personal_data import mask
from emu3_megatron.prepare.streams import (
    Stream,
)
from emu3_megatron.prepare.text_files import Decode, read_texts, text_of
from emu3_megatron.prepare.text_filters import (
    read_faults,
)
from emu3_megatron.prepare.text_tasks import TextTask
from emu3_megatron.vocabulary import Vocabulary, nfc


class TokeniseText:
    """Tokenises the texts of some ranges as documents, in order.

    A part is the same whatever the other ranges hold, so that they can be made anywhere, and parts
    in order are what a loop over the files would have made.
    """

    def __init__(self, config: TextConfig, vocabulary: Vocabulary, strict: bool, signed: bool):
        self._config, self._vocabulary, self._strict = config, vocabulary, strict
        self._signed = signed  # near duplicates are looked for
        self._stream = Stream()
        vocabulary.encoding.check()  # ranks that cannot be read are no fault of the texts

    def __call__(self, task: TextTask) -> None:
        texts: list[np.ndarray] = []
        hashes: list[bytes] = []
        skipped: list[Skipped] = []
        near: list[str] = []
        names: list[str] = []
        origins: dict[str, list[int]] = {}
        for source, where, found in self._texts(task):
            counts = origins.setdefault(source, [0, 0])
            counts[found is None or isinstance(found, Failed)] += 1
            if found is None:
                continue
            if not isinstance(found, Failed):
                texts.append(found[0])
                hashes.append(found[1])
                if self._signed:
                    near.append(found[2])
                    names.append(where)
                continue
            if self._strict:
                raise InputError(
                    f"{where}: {found.reason}; repair it, or let it be set aside without strict"
                )
            skipped.append((where, found.reason))
        part = _part(self._vocabulary, texts, hashes, skipped)
        if self._signed:
            part = replace(part, signatures=text_signatures(near), names=tuple(names))
        files = tuple((source, kept, bad) for source, (kept, bad) in origins.items())
        replace(part, origins=files).write(task.out)

    def _texts(
        self, task: TextTask
    ) -> Iterator[tuple[str, str, tuple[np.ndarray, bytes, str] | Failed | None]]:
        """File of each text, where it stands in it, and its tokens, hash and itself.

        None stands for what filters leave out.
        """
        faults = read_faults(task.scores, self._config)
        for part in task.ranges:
            for found in attempt_each(part.name, read_texts(self._config, part, self._stream)):
                if isinstance(found, Failed):
                    yield part.source, part.name, found
                else:
                    where, decode, data = found
                    if where in faults:
                        yield part.source, where, None
                        continue
                    tokens = partial(self._tokens, decode, data)
                    yield part.source, where, attempt(where, tokens, timed=False)

    def _tokens(self, decode: Decode, data: Any) -> tuple[np.ndarray, bytes, str]:
        text, utf8 = text_of(decode, data, self._config.min_characters)
        if self._config.mask:  # what is put in a place can join with a mark behind it
            text = nfc(mask(text, self._config.mask)[0])
            utf8 = text.encode()
        hashed = hashlib.blake2b(utf8, digest_size=HASH_BYTES).digest()
        return self._vocabulary.encode(text, in_nfc=True), hashed, text


def _part(
    vocabulary: Vocabulary, texts: list[np.ndarray], hashes: list[bytes], skipped: list[Skipped]
) -> Part:
    """Documents of texts, all at once: as `grammar.plain_text` lays out each, BOS text EOS."""
    bos, eos = np.array([vocabulary.bos], np.int32), np.array([vocabulary.eos], np.int32)
    tokens = [piece for text in texts for piece in (bos, text, eos)]
    every_hash = b"".join(hashes)
    return Part(
        tokens=np.concatenate([np.empty(0, np.int32), *tokens]),
        lengths=np.array([2 + len(text) for text in texts], np.int32),
        modes=np.full(len(texts), TRAINED, np.int8),
        spans=np.ones(len(texts), np.int32),
        hashes=np.frombuffer(every_hash, np.uint8).reshape(-1, HASH_BYTES),
        inputs=hashlib.blake2b(every_hash, digest_size=HASH_BYTES).hexdigest(),
        skipped=tuple(skipped),
    )


def tokenise(
    config: TextConfig, vocabulary: Vocabulary, strict: bool, signed: bool
) -> partial[TokeniseText]:
    return partial(TokeniseText, config, vocabulary, strict, signed)
