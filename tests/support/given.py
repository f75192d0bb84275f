"""DPO on given log-probabilities: of the policy, and of a third party's reference."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from emu3_kernels.linear_cross_entropy import TokenLogProbabilities
from torch import Tensor

from emu3_megatron.config.objectives import DpoConfig, ReferenceSection
from emu3_megatron.data.batches import IGNORE, Batch
from emu3_megatron.data.rows import RowBuilder
from emu3_megatron.data.source import Piece
from emu3_megatron.training.objectives.dpo import Dpo
from emu3_megatron.training.placing import Placer
from emu3_megatron.vocabulary import Vocabulary
from support.pairs import CONTEXT
from support.tiny import VOCABULARY


class Given:
    """`inputs.columns["reference"]`, which no folder holds."""

    class Config(ReferenceSection):
        """Nothing to set."""

    def __init__(self, section: "Given.Config", vocabulary: Vocabulary):
        self.section = section
        self.columns: dict[str, Path] = {}

    def prepare(self, engine: Any) -> None:
        """Nothing to prepare."""

    def __call__(self, inputs: Any) -> Tensor:
        return inputs.columns["reference"]


def dpo(vocabulary: Vocabulary, **keys: Any) -> Dpo:
    """The objective with a given reference."""
    reference = {"kind": "support.given:Given"}
    return Dpo(DpoConfig.model_validate({"reference": reference, **keys}), vocabulary)


def pieces_of(documents: list[Any]) -> list[Piece]:
    pieces = []
    for number, document in enumerate(documents):
        context = torch.cat([torch.full((len(s.tokens),), not s.trained) for s in document.spans])
        group, side = divmod(number, 2)
        pieces.append(Piece(document.tokens, context.numpy(), "pairs", number, 0, group, side))
    return pieces


def batch_of(rows: list[list[Any]], tokens: str = "codes", context_size: int = 1) -> Batch:
    weights = dpo(VOCABULARY, tokens=tokens).weights
    builder = RowBuilder(VOCABULARY, CONTEXT, weights, context_size=context_size, group=2)
    return builder.batch([pieces_of(row) for row in rows])


@dataclass
class Policy:
    """A decoder whose log-probabilities are leaves."""

    log_prob: Tensor  # fp32 [b, s], of the whole rows
    mine: Tensor  # int64 [b, s / ranks]: this rank's tokens

    def __call__(self, inputs: Any, want: str) -> TokenLogProbabilities:
        assert want == "log_probabilities"
        kept = inputs.labels_bs != IGNORE
        log_prob = self.log_prob.gather(1, self.mine).where(kept, 0.0)
        return TokenLogProbabilities(log_prob, kept, (-log_prob).detach())


def random_values(batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probabilities by policy and reference, fp32 [b, s]: near each other, far from 0."""
    generator = torch.Generator().manual_seed(0)
    reference = -7 - torch.randn(batch.tokens.shape, generator=generator)
    return reference + 0.1 * torch.randn(batch.tokens.shape, generator=generator), reference


def computed(
    objective: Any, batch: Batch, rank: int = 0, exchange: Any = None, device: str = "cpu"
) -> Any:
    """The loss, its gradient by every token's log-probability, and the sums of one rank."""
    policy, reference = (values.to(device) for values in random_values(batch))
    policy.requires_grad_()
    mine = batch.order[:, rank].to(device)
    inputs = Placer(VOCABULARY, rank)(batch).inputs.to(device)
    layout = inputs.layout if exchange is None else replace(inputs.layout, exchange=exchange)
    inputs = replace(inputs, layout=layout, columns={"reference": reference.gather(1, mine)})
    loss, sums = objective(Policy(policy, mine), inputs, objective.counts(batch).to(device))
    loss.backward()
    return loss.detach(), policy.grad, sums
