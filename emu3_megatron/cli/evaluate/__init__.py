"""`emu3 evaluate`: samples for public suites, and measures of decoder, tokenizer and images."""

from emu3_megatron.cli.arguments import new_group
from emu3_megatron.cli.evaluate.drawing import draw

group = new_group(
    help="Samples as public benchmark suites want them, and our own measures.\n\n"
    "Several processes share the work: torchrun --nproc-per-node N -m emu3_megatron evaluate …"
)
for command in (draw,):
    group.command()(command)
