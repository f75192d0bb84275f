"""Attention over documents whose tokens lie on several ranks."""

from emu3_kernels.ring_attention.plan import RingPlan, RingStep
from emu3_kernels.ring_attention.ring import Ring, RingDropout, ring_attention

__all__ = ["Ring", "RingDropout", "RingPlan", "RingStep", "ring_attention"]
