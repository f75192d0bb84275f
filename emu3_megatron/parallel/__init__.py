"""Process mesh over Megatron's parallel state; importing this makes Megatron-core run anywhere."""

import warnings

from emu3_megatron.parallel import cpu

# Megatron-core announces, module by module, that its optional accelerators are missing, and calls
# collectives by names that torch is about to retire.
warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.core")
warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
# Before any part of megatron-core runs: it takes a GPU for granted.
cpu.install()

from emu3_megatron.parallel.mesh import Mesh, start, stop  # noqa: E402

__all__ = ["Mesh", "start", "stop"]
