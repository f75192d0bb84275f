"""Seams of a clip: whether it jumps where one group of 4 frames ends and the next begins."""

from dataclasses import dataclass

from torch import Tensor

from emu3_megatron.vision.tokenizer import TEMPORAL_FACTOR


@dataclass(frozen=True)
class Steps:
    """Mean absolute change of a pixel from one frame to the next.

    Attributes:
        across: from a group's last frame to the next group's first.
        within: between frames of one group.
    """

    across: float
    within: float


def steps_of(frames_tchw: Tensor) -> Steps | None:
    """Of a clip; None where it has but one group, and so no border."""
    if len(frames_tchw) < 2 * TEMPORAL_FACTOR:
        return None
    frames = frames_tchw.double()
    step_t = (frames[1:] - frames[:-1]).abs().flatten(1).mean(1)
    across_n = step_t[TEMPORAL_FACTOR - 1 :: TEMPORAL_FACTOR]
    within = (step_t.sum() - across_n.sum()) / (len(step_t) - len(across_n))
    return Steps(across_n.mean().item(), within.item())
