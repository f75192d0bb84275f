"""Attention over documents whose tokens lie on several ranks."""

from emu3_kernels.ring_attention.hops import GroupHops, Hops, NoHops, SimulatedHops, simulate
from emu3_kernels.ring_attention.plan import Hop, RingPlan
from emu3_kernels.ring_attention.ring import Ring, RingDropout, ring_attention

__all__ = [
    "GroupHops",
    "Hop",
    "Hops",
    "NoHops",
    "Ring",
    "RingDropout",
    "RingPlan",
    "SimulatedHops",
    "ring_attention",
    "simulate",
]
