"""Saves in two parts: request (a copy of the state, quick) and commit (once all is on disk).

Megatron-core's `dist_checkpointing.save` does the same in one call, in which an error of one rank
leaves the others waiting: here whatever touches a disk is done by a writer or by the first rank,
and all ranks hear of it.
"""

import inspect
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy

from emu3_megatron import manifest
from emu3_megatron.checkpoints.folders import FORMAT, move_tracker
from emu3_megatron.checkpoints.state import SplitState, Stateful
from emu3_megatron.checkpoints.writer import BackgroundWriter, Written
from emu3_megatron.errors import InputError
from emu3_megatron.files import remove_folder
from emu3_megatron.parallel.votes import any_rank, on_first_rank


class SaveError(InputError):
    """A checkpoint could not be written; nothing of it is left, and all ranks know."""


@dataclass(frozen=True)
class PendingSave:
    """A checkpoint that was asked for and is not durable yet.

    Attributes:
        beside: where it is written; a name that no other save has, of this job or another.
        finish: writes the index of all ranks' results; for the first rank.
        about: what the manifest will say besides the files.
    """

    step: int
    beside: Path
    target: Path
    writer: BackgroundWriter
    finish: Callable[[list[list[Any]]], None]
    about: dict[str, Any]

    def is_written(self) -> bool:
        """Whether the writers of all ranks are done. A vote: every rank must ask."""
        (busy,) = any_rank(not self.writer.is_done())
        return not busy

    def commit(self, still_ours: Callable[[], bool] = lambda: True) -> Path:
        """Wait for all writers, then give the checkpoint its name and move the tracker to it.

        Args:
            still_ours: whether the folder still belongs to this job; the first rank's answer.

        Raises:
            SaveError: on all ranks alike; the tracker has not moved.
            TakenOver: on all ranks alike; the folder is another job's, and stays as it is.
        """
        shares: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, self.writer.wait())
        try:
            on_first_rank(lambda: self._commit(shares, still_ours))
        except manifest.TakenOver:
            raise
        except (OSError, InputError) as error:
            on_first_rank(lambda: remove_folder(self.beside))
            raise SaveError(f"{self.target}: not saved: {_reason(error)}") from None
        return self.target

    def _commit(self, shares: list[Written], still_ours: Callable[[], bool]) -> None:
        for rank, share in enumerate(shares):
            if share.error:
                raise SaveError(f"rank {rank}: {share.error}")
        self.finish([share.results for share in shares])
        known = {name: file for share in shares for name, file in share.files.items()}
        manifest.commit(self.beside, self.target, self.about, known, still_ours)
        manifest.require_ours(self.target.parent, still_ours)
        move_tracker(self.target)


def request_checkpoint(
    folder: Path,
    step: int,
    owners: Mapping[str, Stateful],
    about: dict[str, Any],
    still_ours: Callable[[], bool] = lambda: True,
) -> PendingSave:
    """Copy the state of all owners and start writing it beside `folder`/step-….

    Args:
        about: what the manifest says besides; JSON.
        still_ours: asked on the first rank before anything in the folder changes.

    Raises:
        SaveError, TakenOver: on all ranks alike.
    """
    state = SplitState.of(owners)
    target = folder / f"step-{step:08d}"
    sharded, common = save_preprocess(state.tensors)
    try:
        beside = on_first_rank(lambda: _prepare(target, common, still_ours))
    except manifest.TakenOver:
        raise
    except (OSError, InputError) as error:
        raise SaveError(f"{target}: not saved: {_reason(error)}") from None
    planned = _Plan().plan(sharded, beside)
    described = {"format": FORMAT, "step": step, **about, "state": state.values}
    writer = BackgroundWriter(planned.writer)
    return PendingSave(step, beside, target, writer, planned.finish, described)


def write_common(folder: Path, common: dict[str, Any]) -> None:
    """Write what is not sharded, and Megatron's mark of a distributed checkpoint.

    In the form of Megatron-core 0.16, which newer ones read too.
    """
    torch.save(common, folder / COMMON_STATE_FNAME)
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))


@dataclass(frozen=True)
class _Planned:
    writer: Any
    finish: Callable[[list[list[Any]]], None]


class _Plan(TorchDistSaveShardedStrategy):
    """Megatron's plan of who writes what, without its ways of writing and finishing."""

    def __init__(self) -> None:
        super().__init__("torch_dist", 1, thread_count=1)

    def plan(self, sharded: dict[str, Any], folder: Path) -> _Planned:
        """Agree with the other ranks; all must call."""
        # Newer versions of Megatron-core would take NVIDIA's resiliency extension.
        takes = inspect.signature(self.async_save).parameters
        own = {"async_strategy": "mcore"} if "async_strategy" in takes else {}
        return self.async_save(sharded, str(folder), **own)

    def _get_save_and_finalize_callbacks(
        self, writer: Any, planned: Any, *strategy: str
    ) -> _Planned:
        index = planned[1]

        def finish(results: list[list[Any]]) -> None:
            writer.finish(index, results)

        return _Planned(writer, finish)


def _prepare(target: Path, common: dict[str, Any], still_ours: Callable[[], bool]) -> Path:
    """A new folder with what is not sharded; what unfinished saves left is removed."""
    manifest.require_ours(target.parent, still_ours)
    for left in target.parent.glob(".step-*.tmp"):
        manifest.require_ours(target.parent, still_ours)
        remove_folder(left)
    beside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    beside.mkdir(parents=True)
    try:
        write_common(beside, common)
    except RuntimeError as error:  # how torch.save says that a write failed
        raise SaveError(_reason(error)) from None
    return beside


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())
