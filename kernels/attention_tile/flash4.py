"""FlashAttention-4 through torch's operations, where it is installed: the package flash-attn-4.

It has never run here. Its backward may add in any order.
"""

from emu3_kernels.attention_tile import flash

IMPLEMENTATION = flash.by_version("FA4")
