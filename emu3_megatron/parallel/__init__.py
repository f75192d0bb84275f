"""Process mesh over Megatron's parallel state; importing this makes Megatron-core run anywhere."""

import warnings

from emu3_megatron.parallel import cpu

# Megatron-core announces at import that its optional accelerators are missing, once a module.
warnings.filterwarnings("ignore", message="Transformer Engine and Apex are not installed")
warnings.filterwarnings("ignore", message="full scope is deprecated", module="megatron")
# Before any part of megatron-core runs: it takes a GPU for granted.
cpu.install()

from emu3_megatron.parallel.mesh import Mesh, start, stop  # noqa: E402

__all__ = ["Mesh", "start", "stop"]
