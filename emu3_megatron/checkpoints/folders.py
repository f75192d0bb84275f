"""Checkpoint folders: finding, checking and removing them.

`DIR/step-00000100/` holds Megatron's files and `manifest.json`: sizes and hashes, step, recipe,
vocabulary and the state of each owner. `DIR/latest` names the newest.
"""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from emu3_megatron import manifest
from emu3_megatron.errors import InputError
from emu3_megatron.files import remove_folder, replacing
from emu3_megatron.parallel.votes import first_of_ranks, on_first_rank

FORMAT = "emu3-megatron/checkpoint/2"
# Weights alone can be read from these; their runs cannot be resumed.
OLD_FORMATS = ("emu3-megatron/checkpoint/1",)
TRACKER = "latest"


def find_checkpoint(path: Path) -> Path:
    """A checkpoint given by its folder, by the folder of checkpoints, or by the run's folder.

    Raises:
        InputError: there is none.
    """
    for folder in (path, path / "checkpoints"):
        if (folder / manifest.NAME).is_file():
            return folder
        if (folder / TRACKER).is_file():
            return folder / (folder / TRACKER).read_text(encoding="utf-8").strip()
    raise InputError(f"{path}: no checkpoint here; give a run's folder or a step-… folder")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What the manifest says: format, step, recipe, vocabulary, state, files.

    Raises:
        InputError: no manifest, a damaged one, or not a checkpoint's.
    """
    about = manifest.read(path)
    if about.get("format") not in (FORMAT, *OLD_FORMATS):
        raise InputError(f"{path}: not a checkpoint of this program, by its {manifest.NAME}")
    return about


def saw_empty_captions(about: Mapping[str, Any]) -> bool | None:
    """Whether the weights, or those they come from, were trained without captions at times.

    None: they were imported, and it is not known. Earlier versions, which wrote nothing of it,
    left out no captions themselves.

    Args:
        about: what the checkpoint's manifest says.
    """
    if "null_prompt" in about:
        return about["null_prompt"]
    if "imported_from" in about or about.get("recipe", {}).get("run", {}).get("init_from"):
        return None
    return False


def refuse_old(path: Path, about: dict[str, Any]) -> None:
    """Refuse to resume from a checkpoint of an earlier format."""
    if about["format"] in OLD_FORMATS:
        raise InputError(
            f"{path}: written by an earlier version, whose runs cannot be resumed; start a new run "
            f"from its weights: another run.dir, and run.init_from={path}"
        )


def tracked(folder: Path) -> Path | None:
    """The checkpoint that the tracker of a folder names, or None without a tracker.

    As the first rank sees it: a file system may show other hosts an older tracker for a while.
    """
    return on_first_rank(lambda: find_checkpoint(folder) if (folder / TRACKER).is_file() else None)


def move_tracker(target: Path) -> None:
    """Let the tracker name this checkpoint from now on."""
    with replacing(target.parent / TRACKER) as tracker:
        tracker.write_text(target.name + "\n", encoding="utf-8")


def verify(path: Path) -> None:
    """Read every byte of a checkpoint, each rank its share of the files.

    Raises:
        InputError: on all ranks alike; it names the file and the step.
    """
    if fault := _fault(path):
        raise InputError(
            f"{fault}; restore it, or take another; run.resume=auto takes the newest undamaged one"
        )


def newest_sound(folder: Path) -> Path | None:
    """The newest checkpoint whose bytes are all there; newer ones are set aside by name.

    The tracker names it from now on. None if there is none.
    """
    for path in on_first_rank(lambda: sorted(folder.glob("step-*"), reverse=True)):
        fault = _fault(path)
        if fault is None:
            on_first_rank(partial(move_tracker, path))
            return path
        on_first_rank(partial(_set_aside, path, fault))
    return None


def prune(folder: Path, keep: int, keep_every: int | None, still_ours: Callable[[], bool]) -> None:
    """Remove all but the newest `keep` durable checkpoints; never the one the tracker names.

    Args:
        keep_every: those of every so many steps stay too.

    Raises:
        TakenOver: on all ranks alike; the folder is another job's.
    """
    on_first_rank(lambda: _prune(folder, keep, keep_every, still_ours))


def _prune(folder: Path, keep: int, keep_every: int | None, still_ours: Callable[[], bool]) -> None:
    latest = (folder / TRACKER).read_text(encoding="utf-8").strip()
    # What is newer than the tracker was written before a fall back, and will be written again.
    durable = sorted(path for path in folder.glob("step-*") if path.name <= latest)
    for path in durable[:-keep]:
        if keep_every and int(path.name.removeprefix("step-")) % keep_every == 0:
            continue
        manifest.require_ours(folder, still_ours)
        # Not under its name while it goes; what stays of it, the next save removes.
        gone = path.rename(path.with_name(f".{path.name}.gone.tmp"))
        remove_folder(gone)


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, in words, the same on all ranks; None if nothing is."""
    try:
        # Whole, but of a version that this one does not know: whoever reads it says so.
        about = on_first_rank(lambda: manifest.read(path))
    except InputError as error:
        return str(error)
    mine = sorted(about["files"])[dist.get_rank() :: dist.get_world_size()]
    found = first_of_ranks(manifest.first_fault(path, mine, about["files"]))
    return f"step {about['step']}: {found[1]}" if found else None


def _set_aside(path: Path, fault: str) -> None:
    aside = path.with_name(f"damaged-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    print(f"{fault}; set aside as {aside.name}")
