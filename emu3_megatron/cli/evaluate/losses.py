"""`emu3 evaluate loss`: the held-out loss of any checkpoint, by class of token."""

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emu3_megatron.cli.evaluate.drawing import Tensor
from emu3_megatron.cli.sampling import Checkpoint, CheckpointFolder
from emu3_megatron.cli.shards import prefixes_of
from emu3_megatron.config.base import Component
from emu3_megatron.errors import InputError

if TYPE_CHECKING:
    from emu3_megatron.data.source import Source
    from emu3_megatron.vocabulary import Vocabulary


def loss(
    checkpoint: CheckpointFolder,
    pack: Annotated[
        list[Path] | None,
        typer.Option(metavar="NAME.pack", help="held-out packs, once for each"),
    ] = None,
    shards: Annotated[
        list[str] | None,
        typer.Option(metavar="SHARD", help="held-out shards, once for each; they are packed"),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="TOKENS", help="of the rows of shards (default: the checkpoint's)"
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="rows that a process computes at once")] = 1,
    tensor: Tensor = 1,
    context_ranks: Annotated[
        int, typer.Option(min=1, help="processes that share each row's tokens")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="write the numbers too")
    ] = None,
) -> None:
    """Measure loss, and NLL and accuracy of each class of tokens, on held-out data.

    Each row counts once. The loss is weighted as the checkpoint's recipe says; NLL and accuracy
    never are.
    """
    if bool(pack) == bool(shards):
        raise InputError("give --pack, or --shards")
    source = Checkpoint.read(checkpoint)
    from emu3_megatron import parallel
    from emu3_megatron.evaluation.loss import WholeSources, held_out_loss
    from emu3_megatron.training.objectives import build_objective

    vocabulary = source.vocabulary
    opened = _open(pack, vocabulary) if pack else None
    mesh = parallel.start(tensor, context_ranks)
    mesh.seed(0, 0)
    objective = build_objective(_objective(source.about), vocabulary)
    with ExitStack() as stack:
        if opened is None:
            opened = _open([_packed(stack, shards or [], source, context)], vocabulary)
        rows = WholeSources(opened, vocabulary, objective, batch, _resets(source))
        measured = held_out_loss(source.open(mesh), objective, rows, mesh)
    if mesh.is_first:
        _say(measured, len(rows), out)


def _objective(about: dict[str, Any]) -> Component:
    """The recipe's weights of classes, where it minimised the next-token loss."""
    from emu3_megatron.config.objectives import NextTokenConfig

    section = about["recipe"].get("objective", {})
    if section.get("kind") != "next_token":
        return NextTokenConfig()
    return NextTokenConfig.model_validate(section)


def _resets(source: Checkpoint) -> bool:
    return source.about["recipe"].get("data", {}).get("reset_at_documents", True)


def _packed(stack: ExitStack, shards: list[str], source: Checkpoint, context: int | None) -> Path:
    """A pack of the shards, which is removed at the end."""
    from emu3_megatron.data.packing.packs import pack_shards
    from emu3_megatron.generation.limits import trained_context
    from emu3_megatron.parallel.votes import on_first_rank

    length = context or trained_context(source.about)
    if length is None:
        raise InputError(f"{source.path}: it names no context; give --context")
    folder: list[Path] = []

    def write() -> Path:
        # All processes read it, on other machines too: not where each has a disk of its own.
        made = tempfile.TemporaryDirectory(prefix=".held-out-", dir=os.getcwd())
        folder.append(Path(stack.enter_context(made)))
        prefixes = prefixes_of(shards)
        pack_shards(prefixes, folder[0] / "held-out.pack", length, vocabulary=source.vocabulary)
        return folder[0] / "held-out.pack"

    return on_first_rank(write)


def _open(packs: list[Path], vocabulary: "Vocabulary") -> "list[Source]":
    from emu3_megatron.config.data import PackSource
    from emu3_megatron.data.opening import open_source

    sources = [open_source(PackSource(pack=path), vocabulary) for path in packs]
    first, seen = sources[0], set[str]()
    for source in sources:
        if source.context != first.context:
            raise InputError(
                f"{source}: rows of {source.context:,} tokens, those of {first} have "
                f"{first.context:,}; measure them one by one"
            )
        if source.content in seen:
            raise InputError(f"{source}: holds what another --pack holds; name one")
        seen.add(source.content)
    return sources


def _say(measured: dict[str, float], rows: int, out: Path | None) -> None:
    from emu3_megatron.files import write_json

    if out:
        write_json(out, {"rows": rows, **measured})
    print(f"{rows:,} rows: loss {measured['loss']:.6g}")
    for name in [key.removeprefix("nll_") for key in measured if key.startswith("nll_")]:
        print(
            f"  {name:9}  {measured[f'tokens_{name}']:>13,} tokens  "
            f"NLL {measured[f'nll_{name}']:.6g}  accuracy {measured[f'accuracy_{name}']:.4f}"
        )
