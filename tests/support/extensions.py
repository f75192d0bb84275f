"""What a third party may bring, through the public interfaces alone: recipes name it by kind."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emu3_megatron.config.base import REQUIRED, Component, free, semantic
from emu3_megatron.config.data import DataSection, SourceSection
from emu3_megatron.data.setting import Setting
from emu3_megatron.data.source import Piece
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import plain_text
from emu3_megatron.runs.interfaces import Hook, Run, StepResult
from emu3_megatron.vocabulary import TEXT, Vocabulary


class SmoothedText:
    """An objective: the loss on labels of text alone, with label smoothing."""

    class Config(Component):
        smoothing: float = semantic(0.1, "share of the target that all ids have together")

    def __init__(self, section: "SmoothedText.Config", vocabulary: Vocabulary):
        self.vocabulary, self.smoothing = vocabulary, section.smoothing
        self.weights: Mapping[str, float] = {"text": 1.0, "structure": 0.0, "code": 0.0}
        self.columns: Mapping[str, Path] = {}  # none of `data.columns`
        self.group = None  # documents stand alone

    def prepare(self, engine: Any) -> None:
        """Nothing is needed but the decoder that is trained."""

    def counts(self, batch: Any) -> Tensor:
        return batch.weights.sum(dtype=torch.float64)[None]

    def __call__(self, decoder: Any, inputs: Any, denominators: Tensor) -> Any:
        logits_bsv = decoder(inputs, "logits").float()
        loss = torch.nn.functional.cross_entropy(
            logits_bsv.flatten(0, 1),
            inputs.labels_bs.flatten().clamp(min=0),
            label_smoothing=self.smoothing,
            reduction="none",
        )
        total = (loss * inputs.weights_bs.flatten()).sum()
        text = (inputs.classes_bs == TEXT) & (inputs.weights_bs > 0)
        sums = {"loss": total.detach(), "weight": inputs.weights_bs.sum(), "text": text.sum()}
        return total / denominators[0].float(), sums

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        return {"loss": float(sums["loss"] / sums["weight"]), "tokens_text": float(sums["text"])}


class MovingAverage(Hook):
    """A hook with state: an average of the loss, as a number and as a tensor."""

    name = "moving average"

    class Config(Component):
        decay: float = semantic(0.5, "of the average")

    def __init__(self, section: "MovingAverage.Config"):
        self.decay = section.decay
        self.steps, self.average = 0, torch.zeros(())

    def after_step(self, run: Run, step: int, result: StepResult, is_last: bool) -> None:
        self.steps += 1
        self.average += (1 - self.decay) * (result.metrics["loss"] - self.average)
        run.log.write({"step": step, "average": float(self.average), "averaged": self.steps})

    def state_dict(self, saved: Any = None) -> dict[str, Any]:
        return {"steps": self.steps, "average": self.average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.average = state["steps"], state["average"]


class Lines:
    """A source: each line of a text file is a row."""

    class Config(SourceSection):
        file: Path = free(REQUIRED, "of text")
        tokens: int = semantic(REQUIRED, "a row takes; longer lines are cut")

    def __init__(self, section: "Lines.Config", vocabulary: Vocabulary):
        if not section.file.is_file():
            raise InputError(f"{section.file}: no such file")
        self.file, self.vocabulary = section.file, vocabulary
        self.lines = section.file.read_text(encoding="utf-8").splitlines()
        self.context = section.tokens
        self.content = hashlib.sha256("\n".join(self.lines).encode()).hexdigest()

    def __str__(self) -> str:
        return str(self.file)

    def __len__(self) -> int:
        return len(self.lines)

    def row(self, index: int) -> list[Piece]:
        tokens = plain_text(self.vocabulary, self.lines[index]).tokens[: self.context]
        return [Piece(tokens, None, self.file.name, index)]


class Counting:
    """A Data: rows that count up through the codes, from where the last step stopped."""

    class Config(DataSection):
        stride: int = semantic(1, "between two codes")

    def __init__(self, section: "Counting.Config", setting: Setting):
        self.section, self.setting, self.given = section, setting, 0

    def batches(self, run: Run, first: int, last: int) -> Iterator[list[Any]]:
        size, micro = self.setting.batch.size, self.setting.batch.micro_size
        mine = size // run.mesh.data_size
        for _ in range(first, last):
            start = self.given + run.mesh.data_rank * mine
            yield [self._batch(range(i, i + micro), run) for i in range(start, start + mine, micro)]
            self.given += size

    def _batch(self, rows: range, run: Run) -> Any:
        vocabulary, length = self.setting.vocabulary, self.section.context
        counted = torch.arange(length) * self.section.stride
        codes_bs = torch.stack([(counted + row) % vocabulary.num_codes for row in rows])
        return whole_batch(codes_bs + vocabulary.first_code, run.mesh.context_size)

    def state_dict(self, saved: Any = None) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["given"]


def whole_batch(tokens_bs: Tensor, context_size: int) -> Any:
    """A batch of rows that are one document each; every label weighs 1."""
    import numpy as np

    from emu3_megatron.context_parallel.dispatch import dispatch
    from emu3_megatron.data.batches import IGNORE, Batch

    rows, length = tokens_bs.shape
    bounds = torch.tensor([0, length], dtype=torch.int32)
    labels_bs = tokens_bs.roll(-1, dims=1)
    labels_bs[:, -1] = IGNORE
    order = np.stack([dispatch(bounds.numpy(), context_size)] * rows)
    return Batch(
        tokens=tokens_bs,
        labels=labels_bs,
        weights=(labels_bs != IGNORE).float(),
        positions=torch.arange(length).expand(rows, -1),
        boundaries=[bounds] * rows,
        order=torch.from_numpy(order),
        documents=[[]] * rows,
    )
