"""Cuts the files that wandb wrote offline, so that no step is in them twice after a resume."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

# The files are logs of LevelDB's format: a header, then blocks of records, a record in parts
# where it does not fit into what is left of a block.
_HEADER, _BLOCK, _PART = 7, 32768, 7
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def cut_offline_runs(folder: Path, id: str, step: int) -> None:
    """End each offline file of a run before its first row past a step.

    Args:
        folder: wandb's, in the run folder.
        id: wandb's name of the run.
    """
    for path in folder.glob(f"offline-run-*-{id}/run-{id}.wandb"):
        if (end := _first_row_past(path.read_bytes(), step)) is not None:
            os.truncate(path, end)


def _first_row_past(log: bytes, step: int) -> int | None:
    """Where the first row past a step begins."""
    from wandb.proto import wandb_internal_pb2

    for start, data in records(log):
        record = wandb_internal_pb2.Record.FromString(data)  # type: ignore[attr-defined]
        if record.HasField("history") and record.history.step.num > step:
            return start
    return None


def records(log: bytes) -> Iterator[tuple[int, bytes]]:
    """Each record with where it begins; one that a killed run left unfinished is left out."""
    at, start, data = _HEADER, _HEADER, b""
    while at + _PART <= len(log):
        left = _BLOCK - at % _BLOCK
        if left < _PART:  # too little for another part
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", log[at : at + _PART])
        if kind not in (_WHOLE, _FIRST, _MIDDLE, _LAST) or at + _PART + length > len(log):
            return
        if kind in (_WHOLE, _FIRST):
            start, data = at, b""
        data += log[at + _PART : at + _PART + length]
        at += _PART + length
        if kind in (_WHOLE, _LAST):
            yield start, data
