"""`emu3 evaluate`: samples for public suites, and measures of decoder and images."""

from emu3_megatron.cli.arguments import new_group
from emu3_megatron.cli.evaluate.drawing import draw
from emu3_megatron.cli.evaluate.losses import loss
from emu3_megatron.cli.evaluate.measuring import fid, scores

group = new_group(
    help="Samples for public suites; loss, likeness, FID.\n\n"
    "Several processes share the work of draw and loss: "
    "torchrun --nproc-per-node N -m emu3_megatron evaluate …"
)
for command in (draw, scores, loss, fid):
    group.command()(command)
