"""Direct preference optimization on packed pairs, with a next-token loss on the chosen side."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from emu3_kernels.exchange import Exchange
from torch import Tensor

from emu3_megatron.config.objectives import DpoConfig
from emu3_megatron.data.batches import IGNORE, Batch
from emu3_megatron.model import Inputs
from emu3_megatron.training.interfaces import Engine, Sums
from emu3_megatron.training.objectives.preference import AVERAGED, PAIR_LOSSES
from emu3_megatron.training.objectives.references import Reference, build_reference
from emu3_megatron.vocabulary import CLASS_NAMES, Vocabulary

SIDES = ("chosen", "rejected")


class Dpo:
    """Mean loss of the pairs plus `nll` times the chosen side's mean next-token loss.

    A side's log-ratio is the sum, over its tokens that count, of policy minus reference. At the
    thousands of tokens of an image the sums are hundreds of times larger than what tells the sides
    apart, so the difference is taken token by token, before anything is summed; sums are fp64. Both
    means are over the global batch.

    Attributes:
        section: of the recipe, with the digest of the reference's checkpoint.
    """

    def __init__(self, section: DpoConfig, vocabulary: Vocabulary):
        self.reference: Reference = build_reference(section.reference, vocabulary)
        self.section = section.model_copy(update={"reference": self.reference.section})
        self.weights: Mapping[str, float] = label_weights(section)
        self.columns: Mapping[str, Path] = self.reference.columns
        self.group: int | None = len(SIDES)
        self._pair_loss = PAIR_LOSSES[section.variant]

    def prepare(self, engine: Engine) -> None:
        """Open the reference."""
        self.reference.prepare(engine)

    def counts(self, batch: Batch) -> Tensor:
        """Pairs, and the chosen sides' tokens that count, fp64 [2]."""
        sides = Sides.of(batch.boundaries)
        tokens_d = sides.sum((batch.weights > 0).double())
        return torch.stack([tokens_d.new_tensor(len(tokens_d) // 2), tokens_d[::2].sum()])

    def __call__(self, decoder: Any, inputs: Inputs, denominators: Tensor) -> tuple[Tensor, Sums]:
        assert inputs.weights_bs is not None
        found = decoder(inputs, "log_probabilities")
        sides, counts_bs = Sides.of(inputs.starts), inputs.weights_bs > 0
        log_prob_bs = found.log_prob.double()
        ratio_bs = log_prob_bs - self.reference(inputs).double()
        log_prob_d = sides.sum(log_prob_bs.where(counts_bs, 0.0))
        own = torch.stack(
            [sides.sum(ratio_bs.where(counts_bs, 0.0)), sides.sum(counts_bs.double())]
        )
        exchange = inputs.layout.exchange
        ratio_d, tokens_d = _SumOverRanks.apply(own, exchange)
        loss_p = self._loss_of_pairs(ratio_d, tokens_d)
        pairs, tokens = denominators.clamp(min=torch.finfo(torch.float32).tiny)
        loss = loss_p.sum() / pairs - self.section.nll * log_prob_d[::2].sum() / tokens

        once = 1.0 if exchange.rank == 0 else 0.0  # what all context parallel ranks know alike
        sums = {
            "pairs": loss_p.new_full((), once * len(loss_p)),
            "preference": once * loss_p.sum(),
            "accurate": once * (ratio_d[::2] > ratio_d[1::2]).sum().double(),
            "ratio": own[0].view(-1, 2).sum(0),
            "log_prob": log_prob_d.view(-1, 2).sum(0),
            "counted": own[1].view(-1, 2).sum(0),
            "tokens": sides.sizes.sum().double(),
            "entropy": sides.sum(found.entropy.double().where(counts_bs, 0.0)).sum(),
            **_by_class(sides, inputs, ratio_bs.detach(), counts_bs),
        }
        return loss.float(), {name: value.detach() for name, value in sums.items()}

    def _loss_of_pairs(self, ratio_d: Tensor, tokens_d: Tensor) -> Tensor:
        """fp64 [pairs], from each side's log-ratio and number of tokens [2 x pairs]."""
        if self.section.variant in AVERAGED:
            ratio_d = ratio_d / tokens_d
        delta_p = ratio_d[::2] - ratio_d[1::2]
        return self._pair_loss(delta_p, self.section.beta, self.section.label_smoothing)

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Under TRL's names where it has one; docs/training.md says what each is."""
        pairs = float(sums["pairs"]) or 1.0  # 0: of one rank's part of a bad step
        rewards = (self.section.beta * sums["ratio"] / pairs).tolist()
        chosen_tokens, rejected_tokens = sums["counted"].tolist()
        preference = float(sums["preference"]) / pairs
        nll = -float(sums["log_prob"][0]) / (chosen_tokens or 1.0)
        return {
            "loss": preference + self.section.nll * nll,
            "preference_loss": preference,
            "nll/chosen": nll,
            **{f"rewards/{side}": value for side, value in zip(SIDES, rewards, strict=True)},
            "rewards/margins": rewards[0] - rewards[1],
            "rewards/accuracies": float(sums["accurate"]) / pairs,
            **{f"logps/{side}": float(sums["log_prob"][i]) / pairs for i, side in enumerate(SIDES)},
            "entropy": float(sums["entropy"]) / ((chosen_tokens + rejected_tokens) or 1.0),
            "num_tokens": float(sums["tokens"]),
            "num_pairs": float(sums["pairs"]),
            **self._by_class(sums, pairs),
        }

    def _by_class(self, sums: Mapping[str, Any], pairs: float) -> dict[str, float]:
        rows = {}
        for i, name in enumerate(CLASS_NAMES):
            if self.weights[name]:
                for side, ratio in zip(SIDES, sums["class_ratio"][i].tolist(), strict=True):
                    rows[f"rewards/{side}/{name}"] = self.section.beta * ratio / pairs
            if labels := float(sums["class_labels"][i]):
                rows[f"kl/{name}"] = float(sums["class_kl"][i]) / labels
        return rows


def label_weights(section: DpoConfig) -> dict[str, float]:
    """1 for the classes that count, 0 for the others."""
    everything = section.tokens == "answer"
    return {name: float(everything or name == "code") for name in CLASS_NAMES}


@dataclass(frozen=True)
class Sides:
    """The sides of a batch's pairs among all tokens of its rows, one row behind the other.

    Attributes:
        offsets: for each row where its documents begin, and where the last one ends, int64.
    """

    offsets: tuple[Tensor, ...]

    @classmethod
    def of(cls, starts: tuple[Tensor, ...] | list[Tensor]) -> "Sides":
        """From where documents and padding begin in each row, and where the row ends.

        Documents are two for each pair, so that an odd segment is the padding.
        """
        return cls(tuple(row[: (len(row) - 1) // 2 * 2 + 1].long() for row in starts))

    @property
    def sizes(self) -> Tensor:
        """Tokens of each document, int64 [documents]."""
        return torch.cat([row.diff() for row in self.offsets])

    def sum(self, values_bs: Tensor) -> Tensor:
        """The sum over each document, [documents], of row after row; the same every time.

        Each sum is over one stretch in memory, by its bounds: without atomics, in a fixed order.
        """
        parts = [
            torch.segment_reduce(row, "sum", offsets=offsets, initial=0, unsafe=True)
            for row, offsets in zip(values_bs, self.offsets, strict=True)
        ]
        return torch.cat(parts)


def _by_class(sides: Sides, inputs: Inputs, ratio_bs: Tensor, counts_bs: Tensor) -> Sums:
    """Of each class: the sides' log-ratios of tokens that count; and of all labels reference minus
    policy, and their number."""
    assert inputs.labels_bs is not None
    assert inputs.classes_bs is not None
    ratios, drifts, labels = [], [], []
    for i in range(len(CLASS_NAMES)):
        of_class_bs = (inputs.classes_bs == i) & (inputs.labels_bs != IGNORE)
        ratios.append(sides.sum(ratio_bs.where(of_class_bs & counts_bs, 0.0)).view(-1, 2).sum(0))
        drifts.append(-sides.sum(ratio_bs.where(of_class_bs, 0.0)).sum())
        labels.append(sides.sum(of_class_bs.double()).sum())
    return {
        "class_ratio": torch.stack(ratios),
        "class_kl": torch.stack(drifts),
        "class_labels": torch.stack(labels),
    }


class _SumOverRanks(torch.autograd.Function):
    """Sum over context parallel ranks, in rank order.

    All of them compute the same loss from it, so its gradient is that of each rank's share: summing
    gradients here too would multiply them by the number of ranks.
    """

    @staticmethod
    def forward(ctx: Any, share: Tensor, exchange: Exchange) -> Tensor:
        return exchange.all_gather(share)().sum(0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None
