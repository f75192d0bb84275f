"""A folder that is filled by one command at a time, and goes on with the settings it began with."""

import fcntl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from emu3_megatron.errors import InputError

_OF_PLACE = ("checkpoint", "prompts_file")  # where things lie may change between two runs
_DIGESTS = {
    "checkpoint_digest": "another checkpoint",
    "prompts_digest": "other prompts",
    "tokenizer_digest": "another vision tokenizer",
}


def lock(folder: Path, file: Path) -> TextIO:
    """Take a folder, until what is returned is closed or the process ends.

    Args:
        file: the lock; its folder is made.

    Raises:
        InputError: another process has it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    opened = file.open("w", encoding="utf-8")
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"{folder}: another process draws samples here; wait for its end"
        ) from None
    return opened


def require_same(folder: Path, begun: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Refuse to go on with other settings: samples of one folder come from one sampler.

    Raises:
        InputError: naming what differs.
    """
    for name, value in about.items():
        if name in _OF_PLACE or begun.get(name) == value:
            continue
        other = _DIGESTS.get(name, f"{name} {begun.get(name)}, and now it is {value}")
        raise InputError(f"{folder}: begun with {other}; give the same, or choose another --out")
