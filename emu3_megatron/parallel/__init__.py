"""The process mesh over Megatron's parallel state; importing it lets Megatron-core run anywhere."""

from emu3_megatron.parallel import cpu

# Before any part of megatron-core runs: it takes a GPU for granted.
cpu.install()

from emu3_megatron.parallel.mesh import Mesh, start, stop  # noqa: E402

__all__ = ["Mesh", "start", "stop"]
