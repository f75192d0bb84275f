"""FlashAttention-3 through torch's operations, where its module flash_attn_interface is installed.

It has never run here. Its backward may add in any order.
"""

from emu3_kernels.attention_tile import flash

IMPLEMENTATION = flash.by_version("FA3")
