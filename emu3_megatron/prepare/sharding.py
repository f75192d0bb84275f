"""Makes the shards of one kind of data, and describes them for the manifest."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from emu3_megatron.data.shards.sidecar import Sidecar
from emu3_megatron.errors import InputError
from emu3_megatron.prepare.executors import MakeWorker
from emu3_megatron.prepare.origins import Counts, count_origins
from emu3_megatron.prepare.parts import (
    PartSummary,
    ShardTask,
    Sifted,
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

Sift = Callable[[Sequence[PartSummary]], Sifted]


@dataclass(frozen=True)
class Made:
    """What came of a kind.

    Attributes:
        shards: their names.
        documents: in them.
        duplicates: documents left out because they were there already.
        skipped: what could not be used.
        near: documents that are near duplicates, each with of which.
        held_out: what came of the part that is held out.
        origins: of text, what was found and kept by suffix and by source.
    """

    shards: list[str]
    documents: int
    duplicates: int
    skipped: list[Skipped]
    near: list[Skipped] = field(default_factory=list)
    held_out: "Made | None" = None

    @classmethod
    def of(cls, done: dict[str, Any]) -> "Made":
        """What `asdict` made, or an earlier version of it."""
        pairs = {name: [as_skipped(f) for f in done.get(name, [])] for name in ("skipped", "near")}
        held = cls.of(done["held_out"]) if done.get("held_out") else None
        return cls(**{**done, **pairs, "held_out": held})

    def are_whole(self, workspace: Workspace) -> bool:
        held = self.held_out is None or self.held_out.are_whole(workspace.held_out)
        return held and all(is_whole(workspace.out / "shards" / name) for name in self.shards)

    origins: dict[str, Counts] = field(default_factory=dict)


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
    sift: Sift | None = None,
    sifting: Sequence[Any] = (),
    may_be_empty: bool = False,
) -> Made:
    """Run the tasks that make parts, and write the parts as shards.

    Args:
        settings: what decides the tokens, besides the inputs.
        unit: what the sizes of tasks count.
        on_device: the tasks compute on `run.device`.
        sift: leaves out documents of the parts, and sets some apart to be held out.
        sifting: what decides it.
        may_be_empty: to have no document is no error.

    Raises:
        InputError: no document came of it, or a task failed; or with `strict`, something was
            skipped, by this run or by one before it.
    """
    names = [task.out.name for task in tasks]
    key = digest(settings, workspace.recipe.shard_bytes, names, *sifting)
    if (done := workspace.finished(kind, key)) is not None:
        made = Made.of(done)
        _refuse_skipped(workspace, made.skipped)
        if made.are_whole(workspace):
            workspace.drop_parts(kind)  # a run that was killed may have left them
            return made
    workspace.run(make, tasks, f"{kind}: tokens/{unit}", on_device=on_device)
    parts = summarise(task.out for task in tasks)
    skipped = [found for part in parts for found in part.skipped]
    _refuse_skipped(workspace, skipped)
    duplicates = sum(int((~part.kept).sum()) for part in parts)
    sifted = sift(parts) if sift else Sifted(parts, [], [])
    shards = _shards(workspace, kind, settings, sifted.trained)
    if not shards and not may_be_empty:
        apart = " or held out" if workspace.recipe.holdout else ""
        first = f"; the first: {line_of_skipped(skipped[0])}" if skipped else ""
        raise InputError(f"{kind}: nothing to write, every item was set aside{apart}{first}")
    _write_shards(workspace, kind, shards, vocabulary)
    held: Made | None = None
    if sifted.held_out:
        held_shards = _shards(workspace.held_out, kind, settings, sifted.held_out)
        _write_shards(workspace.held_out, kind, held_shards, vocabulary)
        held = _made(held_shards, sifted.held_out)
    made = replace(
        _made(shards, sifted.trained),
        duplicates=duplicates,
        skipped=skipped,
        near=sifted.near,
        held_out=held,
        origins=_origins(sifted),
    )
    workspace.finish(kind, key, asdict(made))
    workspace.drop_parts(kind)
    return made


def _shards(
    workspace: Workspace, kind: str, settings: dict[str, Any], parts: Sequence[PartSummary]
) -> list[ShardTask]:
    size = workspace.recipe.shard_bytes
    return plan_shards(workspace.out / "shards", kind, digest(settings), parts, size)


def _made(shards: Sequence[ShardTask], parts: Sequence[PartSummary]) -> Made:
    documents = sum(int(part.kept.sum()) for part in parts)
    return Made([shard.prefix.name for shard in shards], documents, duplicates=0, skipped=[])


def _origins(sifted: Sifted) -> dict[str, Counts]:
    """What is held out is kept too."""
    trained = (file for part in sifted.trained for file in _of_files(part))
    held = (file for part in sifted.held_out for file in _of_files(part))
    return count_origins([*trained, *((name, 0, kept) for name, _, kept in held)])


def _of_files(part: PartSummary) -> Iterator[tuple[str, int, int]]:
    """Each file of a part, how many texts it has, and how many of them are kept."""
    first = 0
    for name, documents, skipped in part.origins:
        yield name, documents + skipped, int(part.kept[first : first + documents].sum())
        first += documents


def _refuse_skipped(workspace: Workspace, skipped: Sequence[Skipped]) -> None:
    if workspace.recipe.strict and skipped:
        line = line_of_skipped(skipped[0])
        raise InputError(f"{line}; repair it, or let it be set aside without strict")


def line_of_skipped(skipped: Skipped) -> str:
    return ": ".join(skipped)


def _write_shards(
    workspace: Workspace,
    kind: str,
    shards: Sequence[ShardTask],
    vocabulary: Vocabulary,
) -> None:
    folder = workspace.out / "shards"
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
