"""Judging a step before it moves the weights: not finite, a spike, or sound."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from emu3_megatron.config.training import GuardConfig
from emu3_megatron.parallel.votes import any_rank

Reason = Literal["not finite", "spike"]

# A median absolute deviation of normal numbers is this part of their standard deviation.
_MAD_OF_SIGMA = 0.6745
# Below this share of the median, differences count as noise: a flat loss has no deviation at all.
_LEAST_MAD = 1e-3


@dataclass(frozen=True)
class Trouble:
    """Why a step was not taken.

    Attributes:
        micro_batches: of this rank, each with its loss and the documents in it.
    """

    reason: Reason
    loss: float
    grad_norm: float
    micro_batches: list[dict[str, Any]]


class Guard:
    """Says of each step whether it may move the weights; all ranks hear the same.

    A spike is a loss or gradient norm whose robust z-score over the last `window` steps that were
    taken is above the threshold: (x - median) / (MAD / 0.6745). It is looked for once half the
    window has been seen.
    """

    def __init__(self, config: GuardConfig):
        self.config = config
        self.losses: deque[float] = deque(maxlen=config.window)
        self.grad_norms: deque[float] = deque(maxlen=config.window)

    def judge(
        self, loss: float, grad_norm: float, told: bool = False
    ) -> tuple[Reason | None, bool]:
        """Why this step must not be taken, or None; and whether the run is to leave after it.

        The one vote of a step: every rank must ask.

        Args:
            told: this rank was told to leave.
        """
        is_finite = math.isfinite(loss) and math.isfinite(grad_norm)
        is_spike = is_finite and self._is_spike(loss, grad_norm)
        not_finite, spike, leaves = any_rank(not is_finite, is_spike, told)
        if not_finite:
            return "not finite", leaves
        if spike:
            return "spike", leaves
        self.losses.append(loss)
        self.grad_norms.append(grad_norm)
        return None, leaves

    def state(self) -> dict[str, list[float]]:
        """For a checkpoint: with it a resumed run judges as the one that was stopped."""
        return {"losses": list(self.losses), "grad_norms": list(self.grad_norms)}

    def load(self, state: dict[str, list[float]]) -> None:
        for name, values in (("losses", self.losses), ("grad_norms", self.grad_norms)):
            values.clear()
            values.extend(state.get(name, []))

    def _is_spike(self, loss: float, grad_norm: float) -> bool:
        if self.config.spikes == "ignore" or len(self.losses) < self.config.window // 2:
            return False
        scores = z_score(loss, self.losses), z_score(grad_norm, self.grad_norms)
        return max(scores) > self.config.threshold


def z_score(value: float, past: Sequence[float]) -> float:
    """Robust z-score of a value among past ones."""
    middle = median(past)
    deviation = median(abs(x - middle) for x in past)
    return _MAD_OF_SIGMA * (value - middle) / max(deviation, _LEAST_MAD * abs(middle), 1e-30)
