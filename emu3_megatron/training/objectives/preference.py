"""Losses of a preference pair by variant: functions of how much more the policy likes each side."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

# Of the difference between the sides' log-ratios [pairs], beta, and label smoothing.
PairLoss = Callable[[Tensor, float, float], Tensor]


def _sigmoid(delta_p: Tensor, beta: float, smoothing: float) -> Tensor:
    """-(1 - e) log sigmoid(beta x delta) - e log sigmoid(-beta x delta), with smoothing e.

    Equation 7 of DPO (Rafailov et al., arXiv 2305.18290); with smoothing, conservative DPO
    (Mitchell, "A note on DPO with noisy preferences", 2023). With sums divided by the number of
    tokens it is `normalized`: the length-normalized DPO of Tulu 3 (Lambert et al., arXiv
    2411.15124, section 5), which uses beta 5.
    """
    margin_p = beta * delta_p
    return -(1 - smoothing) * logsigmoid(margin_p) - smoothing * logsigmoid(-margin_p)


def _ipo(delta_p: Tensor, beta: float, smoothing: float) -> Tensor:
    """(delta - 1 / (2 beta))^2: equation 17 of IPO (Azar et al., arXiv 2310.12036).

    Its beta is the paper's tau. Log-ratios are averaged over tokens, as in the authors' own
    experiments: sums would make the distance to 1 / (2 beta) one of lengths.
    """
    return (delta_p - 1 / (2 * beta)).square()


def _hinge(delta_p: Tensor, beta: float, smoothing: float) -> Tensor:
    """max(0, 1 - beta x delta): SLiC's calibration loss on DPO's margin.

    Zhao et al., arXiv 2305.10425, section 2.2; on log-ratios, Liu et al., arXiv 2309.06657.
    """
    return (1 - beta * delta_p).relu()


PAIR_LOSSES: dict[str, PairLoss] = {
    "sigmoid": _sigmoid,
    "normalized": _sigmoid,
    "ipo": _ipo,
    "hinge": _hinge,
}

# Variants whose log-ratios are divided by the number of tokens of their side.
AVERAGED = frozenset({"normalized", "ipo"})


def loss_without_preference(variant: str, beta: float) -> float:
    """The loss of a pair while policy and reference are one model: ln 2 of sigmoid."""
    return float(PAIR_LOSSES[variant](torch.zeros((), dtype=torch.float64), beta, 0.0))
