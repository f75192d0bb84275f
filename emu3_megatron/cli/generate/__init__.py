"""`emu3 generate`: images, clips, captions, answers and illustrated text from a checkpoint."""

from emu3_megatron.cli.arguments import new_group
from emu3_megatron.cli.generate.agreement import agreement
from emu3_megatron.cli.generate.clips import clip
from emu3_megatron.cli.generate.images import image
from emu3_megatron.cli.generate.texts import caption, dialogue, text

group = new_group(
    help="Images, clips, captions, answers and text from a checkpoint.\n\n"
    "Several processes share the decoder: torchrun --nproc-per-node N -m emu3_megatron generate …"
)
for command in (image, clip, caption, dialogue, text, agreement):
    group.command()(command)
