"""The weighted next-token loss: sum of weighted losses over sum of weights."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emu3_megatron.config.objectives import NextTokenConfig
from emu3_megatron.data.batches import IGNORE, Batch
from emu3_megatron.model import Inputs
from emu3_megatron.training.interfaces import Engine, Sums
from emu3_megatron.vocabulary import CLASS_NAMES, Vocabulary


class NextToken:
    """Sum over the global batch of w x (nll + z_loss x log-partition^2), over the sum of w.

    w is the weight of a label's class; labels of context spans and of padding have none.
    """

    def __init__(self, section: NextTokenConfig, vocabulary: Vocabulary):
        self.weights: Mapping[str, float] = section.weights
        self.columns: Mapping[str, Path] = {}
        self.group: int | None = None
        self.z_loss = section.z_loss
        self._candidates = None if section.codes else vocabulary.first_code

    def prepare(self, engine: Engine) -> None:
        """Nothing to prepare."""

    def counts(self, batch: Batch) -> Tensor:
        """The weight of all labels, fp64 [1]."""
        return batch.weights.sum(dtype=torch.float64)[None]

    def __call__(self, decoder: Any, inputs: Inputs, denominators: Tensor) -> tuple[Tensor, Sums]:
        # A step whose labels all weigh nothing has loss 0.
        weight = denominators[0].float().clamp(min=torch.finfo(torch.float32).tiny)
        sums = self._sums(decoder, inputs, 1 / weight)
        return sums.loss / weight, {name: value.detach() for name, value in sums._asdict().items()}

    def _sums(self, decoder: Any, inputs: Inputs, scale: Tensor) -> Any:
        if self._candidates is not None:
            assert inputs.labels_bs is not None
            labels_bs = inputs.labels_bs.masked_fill(inputs.labels_bs >= self._candidates, IGNORE)
            inputs = replace(inputs, labels_bs=labels_bs, kept=None)
        settings = {"candidates": self._candidates, "known_scale": scale}
        return decoder(inputs, "sums", self.z_loss, **settings)

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """The loss, and NLL, accuracy and count of each class that occurred."""
        loss, weight = float(sums["loss"]), float(sums["weight"])
        rows = {"loss": loss / weight if weight else 0.0}
        for i, name in enumerate(CLASS_NAMES):
            count = float(sums["count"][i])
            if count:
                rows[f"nll_{name}"] = float(sums["nll"][i]) / count
                rows[f"accuracy_{name}"] = float(sums["correct"][i]) / count
            rows[f"tokens_{name}"] = int(count)
        return rows
