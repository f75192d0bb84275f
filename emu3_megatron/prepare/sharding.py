"""Tasks to parts to shards, and what the manifest says of them."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from emu3_megatron.data.sidecar import Sidecar
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.engine import MakeStage
from emu3_megatron.prepare.parts import PartSummary, WriteShard, is_whole, plan_shards, summarise
from emu3_megatron.prepare.tables import Row
from emu3_megatron.prepare.workspace import FileTask, Workspace, digest
from emu3_megatron.vocabulary import Vocabulary


def make_shards(
    workspace: Workspace,
    kind: str,
    settings: dict[str, Any],
    tasks: Sequence[FileTask],
    make: MakeStage,
    vocabulary: Vocabulary,
    unit: str,
) -> tuple[list[Path], list[PartSummary]]:
    """Run the tasks that make parts, and write the parts as shards.

    Args:
        settings: what decides the tokens, besides the inputs.
        unit: what the sizes of tasks count.

    Returns:
        Prefixes of the shards; and the parts, [] when the shards were there already.

    Raises:
        InputError: no document came of it, or a task failed.
    """
    folder = workspace.out / "shards"
    key = digest(settings, workspace.recipe.shard_bytes, [task.out.name for task in tasks])
    names = workspace.finished(kind, key)
    if names is not None and all(is_whole(folder / name) for name in names):
        return [folder / name for name in names], []
    workspace.run(make, tasks, f"{kind}: tokens/{unit}")
    parts = summarise(task.out for task in tasks)
    shards = plan_shards(folder, kind, digest(settings), parts, workspace.recipe.shard_bytes)
    if not shards:
        raise InputError(f"{kind}: nothing to write, every item was set aside")
    _write_shards(workspace, kind, folder, shards, vocabulary)
    workspace.finish(kind, key, [shard.prefix.name for shard in shards])
    return [shard.prefix for shard in shards], parts


def _write_shards(
    workspace: Workspace, kind: str, folder: Path, shards: Sequence[Any], vocabulary: Vocabulary
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


def describe_shard(prefix: Path) -> dict[str, Any]:
    sidecar = Sidecar.read(prefix)
    assert sidecar is not None, "we wrote it"
    return {
        "name": prefix.name,
        "documents": sidecar.documents,
        "tokens": sidecar.tokens,
        "content": sidecar.content,
    }


def set_aside(rows: Sequence[Row]) -> dict[str, int]:
    """How many items were set aside, by the category of their reason."""
    heads = Counter(row["reason"].partition(":")[0] for row in rows if row["reason"])
    return dict(sorted(heads.items()))


def refuse_nothing(kind: str, rows: Sequence[Row]) -> None:
    """Raises InputError when nothing was kept."""
    if not any(row["kept"] for row in rows):
        reasons = ", ".join(f"{number} {head}" for head, number in set_aside(rows).items())
        raise InputError(f"{kind}: nothing to write, every item was set aside: {reasons}")
