"""Makes the shards of one kind of data, and describes them for the manifest."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from emu3_megatron.data.shards.sidecar import Sidecar
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.executors import MakeWorker
from emu3_megatron.prepare.parts import (
    ShardTask,
    Skipped,
    WriteShard,
    as_skipped,
    is_whole,
    plan_shards,
    summarise,
)
from emu3_megatron.prepare.tables import Row
from emu3_megatron.prepare.workspace import FileTask, Workspace, digest
from emu3_megatron.vocabulary import Vocabulary


@dataclass(frozen=True)
class Made:
    """What came of a kind.

    Attributes:
        shards: their names.
        documents: in them.
        duplicates: documents left out because they were there already.
        skipped: what could not be used.
    """

    shards: list[str]
    documents: int
    duplicates: int
    skipped: list[Skipped]


def make_shards(
    workspace: Workspace,
    kind: str,
    settings: dict[str, Any],
    tasks: Sequence[FileTask],
    make: MakeWorker,
    vocabulary: Vocabulary,
    unit: str,
    *,
    on_device: bool,
) -> Made:
    """Run the tasks that make parts, and write the parts as shards.

    Args:
        settings: what decides the tokens, besides the inputs.
        unit: what the sizes of tasks count.
        on_device: the tasks compute on `run.device`.

    Raises:
        InputError: no document came of it, or a task failed; or with `strict`, something was
            skipped, by this run or by one before it.
    """
    folder = workspace.out / "shards"
    key = digest(settings, workspace.recipe.shard_bytes, [task.out.name for task in tasks])
    if (done := workspace.finished(kind, key)) is not None:
        made = Made(**{**done, "skipped": [as_skipped(found) for found in done["skipped"]]})
        _refuse_skipped(workspace, made.skipped)
        if all(is_whole(folder / name) for name in made.shards):
            workspace.drop_parts(kind)  # a run that was killed may have left them
            return made
    workspace.run(make, tasks, f"{kind}: tokens/{unit}", on_device=on_device)
    parts = summarise(task.out for task in tasks)
    skipped = [found for part in parts for found in part.skipped]
    _refuse_skipped(workspace, skipped)
    shards = plan_shards(folder, kind, digest(settings), parts, workspace.recipe.shard_bytes)
    if not shards:
        first = f"; the first: {line_of_skipped(skipped[0])}" if skipped else ""
        raise InputError(f"{kind}: nothing to write, every item was set aside{first}")
    _write_shards(workspace, kind, folder, shards, vocabulary)
    made = Made(
        shards=[shard.prefix.name for shard in shards],
        documents=sum(int(part.kept.sum()) for part in parts),
        duplicates=sum(int((~part.kept).sum()) for part in parts),
        skipped=skipped,
    )
    workspace.finish(kind, key, asdict(made))
    workspace.drop_parts(kind)
    return made


def _refuse_skipped(workspace: Workspace, skipped: Sequence[Skipped]) -> None:
    if workspace.recipe.strict and skipped:
        line = line_of_skipped(skipped[0])
        raise InputError(f"{line}; repair it, or let it be set aside without strict")


def line_of_skipped(skipped: Skipped) -> str:
    return ": ".join(skipped)


def _write_shards(
    workspace: Workspace,
    kind: str,
    folder: Path,
    shards: Sequence[ShardTask],
    vocabulary: Vocabulary,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {shard.prefix.name for shard in shards}
    for path in folder.glob(f"{kind}-*"):
        if path.stem not in wanted:
            path.unlink()
    workspace.run_all(
        partial(WriteShard, vocabulary),
        [shard for shard in shards if not is_whole(shard.prefix)],
        f"{kind}: shards/B",
    )


def describe_shards(workspace: Workspace, made: Made) -> list[dict[str, Any]]:
    """What the manifest says of each shard."""
    shards = []
    for name in made.shards:
        sidecar = Sidecar.read(workspace.out / "shards" / name)
        assert sidecar is not None, "we wrote it"
        values = {"documents": sidecar.documents, "tokens": sidecar.tokens}
        shards.append({"name": name, **values, "content": sidecar.content})
    return shards


def set_aside(rows: Sequence[Row]) -> dict[str, int]:
    """How many items were set aside, by the category of their reason."""
    heads = Counter(row["reason"].partition(":")[0] for row in rows if row["reason"])
    return dict(sorted(heads.items()))


def refuse_nothing(kind: str, rows: Sequence[Row]) -> None:
    """Raises InputError when nothing was kept."""
    if not any(row["kept"] for row in rows):
        reasons = ", ".join(f"{number} {head}" for head, number in set_aside(rows).items())
        raise InputError(f"{kind}: nothing to write, every item was set aside: {reasons}")
