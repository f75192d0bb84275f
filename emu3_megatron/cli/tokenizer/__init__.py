"""`emu3 tokenizer`: trains the vision tokenizer, measures it, and turns files into codes."""

from emu3_megatron.cli.arguments import new_group
from emu3_megatron.cli.tokenizer.coding import decode, encode
from emu3_megatron.cli.tokenizer.evaluating import evaluate
from emu3_megatron.cli.tokenizer.training import train

group = new_group(
    help="Train the vision tokenizer, measure it, use it.\n\n"
    "It turns images and clips into codes, and codes back. Several processes share the work: "
    "torchrun --nproc-per-node N -m emu3_megatron tokenizer …"
)
for command in (train, evaluate, encode, decode):
    group.command()(command)
