"""Stored references: a frozen decoder's log-probability of every label of a recipe's sources.

They are computed as the run will compute the policy's: in its layout, precision and backends, and
as many rows at once. In bf16 other sums are other roundings, as large as what tells the sides of a
pair apart.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from emu3_kernels.exchange import Exchange, GroupExchange, NoExchange
from torch import Tensor
from tqdm import tqdm

from emu3_megatron import manifest
from emu3_megatron.checkpoints.folders import find_checkpoint, read_checkpoint
from emu3_megatron.config.training import BackendConfig, BatchConfig, ParallelConfig
from emu3_megatron.data.batches import Batch
from emu3_megatron.data.columns import ColumnWriter, read_columns, same_columns
from emu3_megatron.data.rows import RowBuilder
from emu3_megatron.data.source import Source
from emu3_megatron.errors import InputError
from emu3_megatron.model import Decoder, Inputs
from emu3_megatron.parallel import Mesh
from emu3_megatron.parallel.groups import context_group, data_group
from emu3_megatron.parallel.votes import on_first_rank
from emu3_megatron.training.objectives.references import (
    COLUMN,
    Reference,
    Stored,
    checkpoint_digest,
)
from emu3_megatron.training.placing import Placer
from emu3_megatron.vocabulary import Vocabulary


def layout_of(
    parallel: ParallelConfig, batch: BatchConfig, backend: BackendConfig
) -> dict[str, Any]:
    """What decides the order of sums: keys of the recipe, and what its `auto` stands for here."""
    return {
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "parallel.tensor": parallel.tensor,
        "parallel.context": parallel.context,
        "parallel.sequence": parallel.sequence,
        "batch.micro_size": batch.micro_size,
        **{f"backend.{name}": value for name, value in backend.model_dump().items()},
    }


def describe(
    checkpoint: Path, vocabulary: Vocabulary, layout: dict[str, Any], precision: str
) -> dict[str, Any]:
    """What the manifest of a stored reference says besides its sources."""
    about = read_checkpoint(checkpoint)
    return {
        "column": COLUMN,
        "checkpoint": {"digest": manifest.digest_of(checkpoint), "step": about["step"]},
        "vocabulary": vocabulary.fingerprint(),
        "layout": layout,
        "precision": precision,
    }


def check_reference(
    reference: Reference, init_from: Path | None, layout: dict[str, Any], precision: str
) -> str | None:
    """See that a reference is of the model that training starts from, computed as the run computes.

    Args:
        init_from: of a new run; None for one that is resumed, whose checkpoint knows its reference.

    Returns:
        What is to be said of a reference of another layout, where the recipe takes one.

    Raises:
        InputError: it is of another model, precision or layout.
    """
    name = _name_of(reference)
    if init_from is not None:
        digest = checkpoint_digest(find_checkpoint(init_from))
        if reference.section.content != digest:
            raise InputError(
                f"{name}: a reference of checkpoint {str(reference.section.content)[:12]}…, but "
                f"run.init_from={init_from} is {digest[:12]}…; the reference must be the model "
                "that training starts from: name that one, or store it with emu3 reference in "
                "another folder"
            )
    return _check_stored(reference, layout, precision) if isinstance(reference, Stored) else None


def _name_of(reference: Reference) -> str:
    section = reference.section
    place = getattr(section, "folder", None) or getattr(section, "checkpoint", None)
    return str(place or f"objective.reference.kind={section.kind}")


def _check_stored(reference: Stored, layout: dict[str, Any], precision: str) -> str | None:
    about, name = reference.about, _name_of(reference)
    if about["precision"] != precision:
        raise InputError(
            f"{name}: a reference in {about['precision']}, precision={precision} in the recipe; "
            "store it anew with emu3 reference in another objective.reference.folder"
        )
    keys = [key for key in layout if about["layout"].get(key) != layout[key]]
    if not keys:
        return None
    then, now = (
        ", ".join(f"{key}={of.get(key)}" for key in keys) for of in (about["layout"], layout)
    )
    if not reference.section.any_layout:
        raise InputError(
            f"{name}: a reference of another layout ({then}; the recipe has {now}), whose rounding "
            "differs; store it anew with emu3 reference in another objective.reference.folder, or "
            "accept the noise with objective.reference.any_layout=true"
        )
    return f"{name}: a reference of another layout ({then}; here {now}); {_NOISE[precision]}"


# Fast-LLM's PR 525 measured 0.03 nats between two engines; the sum over n tokens grows as sqrt(n).
_NOISE = {
    "bf16": "in bf16 log-probabilities then differ by about 0.03 nats a token (root mean square), "
    "2 nats in the sum over an image of 4,096 codes, where the sides of a pair differ by 2 to 4",
    "fp32": "in fp32 that is rounding of the last digits",
}


def write_reference(
    folder: Path,
    about: dict[str, Any],
    sources: Sequence[Source],
    decoder: Decoder,
    *,
    builder: RowBuilder,
    micro_size: int,
    mesh: Mesh,
) -> None:
    """Store a decoder's log-probabilities of every label of some sources; a call on every rank.

    One that is interrupted goes on where it stopped.

    Args:
        about: from `describe`.
        builder: lays out rows, as for training.
        micro_size: rows that a rank computes at once.
    """
    writers: list[ColumnWriter] = []  # the first rank's
    on_first_rank(lambda: writers.append(ColumnWriter(folder, about)))
    compute = _LogProbabilities(decoder, builder, mesh)
    for source in sources:
        done = on_first_rank(lambda source=source: writers[0].begin(source))  # type: ignore[misc]
        hidden = None if mesh.is_first else True
        with tqdm(
            desc=str(source), initial=done, total=len(source), unit="row", disable=hidden
        ) as bar:
            for first in range(done, len(source), micro_size * mesh.data_size):
                rows = compute(source, first, micro_size)
                on_first_rank(lambda rows=rows: _append(writers[0], rows))  # type: ignore[misc]
                bar.update(min(len(rows), len(source) - first))
        on_first_rank(lambda: writers[0].end())
    on_first_rank(lambda: writers[0].commit())


def _append(writer: ColumnWriter, rows: Sequence[np.ndarray]) -> None:
    for row in rows:
        writer.append(row)


def is_stored(folder: Path, about: dict[str, Any], sources: Sequence[Source]) -> bool:
    """Whether a folder holds all of it already.

    Raises:
        InputError: it holds another reference.
    """
    if not (folder / manifest.NAME).is_file():
        return False
    found = read_columns(folder)
    if not same_columns(found, about):
        raise InputError(
            f"{folder}: holds another reference (of checkpoint "
            f"{found.get('checkpoint', {}).get('digest', '')[:12]}…, {found.get('precision')}, "
            f"{found.get('layout')}); choose another objective.reference.folder"
        )
    return all(
        found["sources"].get(source.content, {}).get("rows") == len(source) for source in sources
    )


class _LogProbabilities:
    """Log-probabilities of the labels of rows, computed by all ranks together."""

    def __init__(self, decoder: Decoder, builder: RowBuilder, mesh: Mesh):
        self.decoder, self.builder, self.mesh = decoder, builder, mesh
        self.place = Placer(builder.vocabulary, mesh.context_rank)
        self.exchange: Exchange = NoExchange()
        if mesh.context_size > 1:
            self.exchange = GroupExchange(context_group(), point_to_point=True)

    @torch.no_grad()
    def __call__(self, source: Source, first: int, number: int) -> list[np.ndarray]:
        """Of `number` rows of each data parallel rank from row `first` on, float32 [tokens] each.

        Behind the last row of the source ranks compute it once more, for none may be missing.
        """
        mine = first + self.mesh.data_rank * number
        indices = [min(index, len(source) - 1) for index in range(mine, mine + number)]
        pieces = [source.row(index) for index in indices]
        values_rs = self._gather(self._of_whole_rows(self.builder.batch(pieces)))
        lengths = [sum(len(piece.tokens) for piece in row) for row in pieces]
        lengths_r = self._gather(torch.tensor(lengths, device=self.mesh.device))
        rows = zip(values_rs.cpu().numpy(), lengths_r.tolist(), strict=True)
        return [row[:length] for row, length in rows][: len(source) - first]

    def _of_whole_rows(self, batch: Batch) -> Tensor:
        """fp32 [b, s], the same on all context parallel ranks; 0 where there is no label."""
        device = self.mesh.device
        inputs: Inputs = self.place(batch).inputs.to(device)
        layout = replace(inputs.layout, exchange=self.exchange)
        own = self.decoder(replace(inputs, layout=layout), "log_probabilities").log_prob
        whole_bs = torch.zeros(batch.tokens.shape, dtype=torch.float32, device=device)
        whole_bs.scatter_(1, batch.order[:, self.mesh.context_rank].to(device), own.float())
        if self.mesh.context_size > 1:
            dist.all_reduce(whole_bs, group=context_group())  # to zeros: exact
        return whole_bs

    def _gather(self, tensor: Tensor) -> Tensor:
        """Of all data parallel ranks, one behind the other."""
        parts = [torch.empty_like(tensor) for _ in range(self.mesh.data_size)]
        dist.all_gather(parts, tensor.contiguous(), group=data_group())
        return torch.cat(parts)
