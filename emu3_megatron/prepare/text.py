"""Plain text to documents."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from emu3_megatron.errors import InputError
from emu3_megatron.grammar import Document, plain_text
from emu3_megatron.prepare.sources import find_files
from emu3_megatron.prepare.writing import Counts, FilteredOut, Job, write_documents
from emu3_megatron.vocabulary import Vocabulary

TEXT_SUFFIXES = frozenset({".jsonl", ".txt"})

Decode = Callable[[bytes], str]
TextFilter = Callable[[str], bool]
"""Whether to keep a text: the place for filters by language or quality."""


def prepare_text(
    source: str | Path,
    out_prefix: str | Path,
    vocabulary: Vocabulary,
    *,
    filters: Sequence[TextFilter] = (),
    strict: bool = False,
) -> Counts:
    """Make a shard of text.

    Args:
        source: a .jsonl file with a `text` field in each line, a .txt file that is one document,
            or a folder of these.
        out_prefix: of the shard.
        filters: a text that one rejects is left out.
        strict: refuse a line or file that cannot be read, or is empty, instead of skipping it.

    Raises:
        InputError: nothing usable, or with `strict` something that is not. Nothing is written then.
    """
    paths = [Path(source)] if Path(source).is_file() else find_files(source, TEXT_SUFFIXES)
    total = sum(path.stat().st_size for path in paths)
    jobs = (
        Job(partial(_documents, name, data, decode, vocabulary, filters), len(data))
        for path in paths
        for name, data, decode in _read(path)
    )
    return write_documents(out_prefix, vocabulary, jobs, total=total, unit="B", strict=strict)


def _read(path: Path) -> Iterator[tuple[str, bytes, Decode]]:
    """Name and content of each text of a file, and how to decode it."""
    if path.suffix.lower() != ".jsonl":
        yield str(path), path.read_bytes(), bytes.decode
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield f"{path}:{number}", line, _text_field


def _text_field(line: bytes) -> str:
    try:
        return str(json.loads(line)["text"])
    except UnicodeDecodeError:
        raise
    except (ValueError, KeyError, TypeError):
        raise InputError("not JSON with a text field") from None


def _documents(
    name: str, data: bytes, decode: Decode, vocabulary: Vocabulary, filters: Sequence[TextFilter]
) -> list[Document]:
    try:
        text = decode(data)
    except UnicodeDecodeError:
        raise InputError(f"{name}: not UTF-8 text") from None
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    if not text.strip():
        raise InputError(f"{name}: its text is empty")
    if not all(keep(text) for keep in filters):
        raise FilteredOut
    return [plain_text(vocabulary, text)]
