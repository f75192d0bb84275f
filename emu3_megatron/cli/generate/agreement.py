"""`emu3 generate agreement`: what weights in 8 bits change."""

from emu3_megatron.cli.generate.drawing import (
    Caption,
    PromptsFile,
    check_or_estimate,
    read_captions,
)
from emu3_megatron.cli.sampling import Batch, Checkpoint, CheckpointFolder, Context, GridOption
from emu3_megatron.generation.options import EngineOptions


def agreement(
    checkpoint: CheckpointFolder,
    caption: Caption = None,
    prompts: PromptsFile = None,
    grid: GridOption = None,
    batch: Batch = 8,
    context: Context = None,
) -> None:
    """State how far --eight-bit agrees with the full weights.

    An image of each caption is drawn greedily by the full weights, without guidance; then both read
    it. At each code the likeliest codes are compared, and the distributions over all codes.
    """
    from emu3_megatron.generation.agreement import compare_eight_bits, joined
    from emu3_megatron.generation.estimate import Work
    from emu3_megatron.generation.files.prompts import Defaults
    from emu3_megatron.generation.images import VisionPrompt
    from emu3_megatron.grammar import vision_prompt

    source = Checkpoint.read(checkpoint)
    limits = source.limits(context)
    defaults = Defaults(lambda text: grid or source.grid(text), "image")
    wanted = [
        VisionPrompt(found.text, found.meta)
        for found in read_captions(caption, prompts, defaults)
        if found.meta
    ]
    limits.check_count(len(wanted), "images")
    length = lambda one: len(vision_prompt(source.vocabulary, one.caption, one.meta))
    works = [Work.of_vision(length(one), one.meta) for one in wanted]
    batches = [slice(i, i + batch) for i in range(0, len(wanted), batch)]
    options = EngineOptions(eight_bit=True)
    check_or_estimate(source, [works[some] for some in batches], limits, options, False)
    mesh = source.start()
    decoder = source.open(mesh)
    found = []
    for some in batches:
        found += compare_eight_bits(decoder, source.vocabulary, wanted[some])
        if mesh.is_first:
            for one, agreement in zip(wanted[some], found[some], strict=True):
                print(f"{agreement}: {one.caption}", flush=True)
    if mesh.is_first:
        print(f"{joined(found)}: all {len(found):,} images")
