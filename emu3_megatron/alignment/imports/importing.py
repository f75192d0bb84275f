"""Takes the votes of another tool's file into a folder of samples."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from emu3_megatron.alignment.imports import argilla, label_studio, tables
from emu3_megatron.alignment.imports.ballots import Ballot, collect
from emu3_megatron.alignment.samples import Samples
from emu3_megatron.alignment.votes import votes_file
from emu3_megatron.errors import InputError
from emu3_megatron.files import replacing


def import_votes(folder: Path, file: Path, columns: Sequence[str] = ()) -> dict[str, int]:
    """Write the votes of a file into FOLDER/imported-FILE.jsonl, in place of an earlier import.

    Args:
        file: an export of Label Studio or Argilla (.json), or a table (.csv, .jsonl, .parquet).
        columns: of scores in a table.

    Returns:
        The number of prompts for each voter.

    Raises:
        InputError: the file is none of these, or names what the folder does not hold.
    """
    samples = Samples(folder)
    target = votes_file(folder, file.stem, "imported")
    scores = collect(samples, _ballots(file, columns))
    if not scores:
        raise InputError(f"{file}: holds no votes on samples")
    now = time.time()
    with replacing(target) as beside:
        lines = (
            {"time": now, "voter": voter, "prompt": prompt, "scores": given}
            for (voter, prompt), given in scores.items()
        )
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        beside.write_text(text, encoding="utf-8")
    return dict(Counter(voter for voter, _ in scores))


def _ballots(file: Path, columns: Sequence[str]) -> Iterator[Ballot]:
    if file.suffix in tables.SUFFIXES:
        yield from tables.ballots(file, columns)
        return
    if file.suffix != ".json":
        raise InputError(
            f"{file}: give an export of Label Studio or Argilla (.json), or a table of scores "
            f"({', '.join(tables.SUFFIXES)})"
        )
    records = _read_json(file)
    for tool in (label_studio, argilla):
        if any(tool.is_export(record) for record in records):
            yield from tool.ballots(records, str(file))
            return
    raise InputError(f"{file}: neither an export of Label Studio (JSON) nor of Argilla 2 (to_json)")


def _read_json(file: Path) -> list[dict]:
    try:
        records = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except ValueError:
        raise InputError(f"{file}: not JSON") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise InputError(
            f"{file}: not a list of records; export from Label Studio as JSON, from Argilla 2 with "
            "dataset.records.to_json(path)"
        )
    return records
