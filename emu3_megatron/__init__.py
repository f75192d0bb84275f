"""A training system for Emu3-type models: text, images and video as one sequence of tokens."""

import warnings

__version__ = "0.1.0"

# Megatron-core announces, module by module, that its optional accelerators are missing, and calls
# torch by names that are about to be retired. Who reads our output can do nothing about that.
warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.core")
warnings.filterwarnings("ignore", category=FutureWarning, module=r"(megatron\.core|torch\.)")
