"""Training steps of the vision tokenizer's presets: milliseconds, samples a second, memory.

On a GPU in bf16 with recomputation, the discriminators among it; on a CPU the tiny preset in fp32.

    python benchmarks/tokenizer_step.py --json FILE
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from harness import Case, main

from emu3_megatron import parallel
from emu3_megatron.config.tokenizer_training import TokenizerRecipe
from emu3_megatron.media.images import to_image
from emu3_megatron.media.writers import write_clip, write_png
from emu3_megatron.runs.interfaces import Verdict
from emu3_megatron.tokenizer_training.building import build_trainer
from emu3_megatron.tokenizer_training.samples import Sample, Samples

ON_GPU = torch.cuda.is_available()
# Preset, side, photos and clips of 8 frames a step.
CASES = [("small", 256, 16, 0), ("full", 256, 8, 0), ("full", 256, 6, 2)]


def cases(quick: bool) -> Iterator[Case]:
    folder = Path(tempfile.mkdtemp())
    write_png(folder / "photo.png", to_image(torch.rand(3, 64, 64) * 2 - 1))
    write_clip(folder / "clip.mp4", torch.rand(8, 3, 64, 64) * 2 - 1, fps=12)
    mesh = parallel.start()
    chosen = CASES[: 1 if quick else None] if ON_GPU else [("tiny", 64, 4, 0)]
    for preset, side, photos, clips in chosen:
        recipe = TokenizerRecipe.model_validate(
            {
                "run": {"dir": folder / "run", "steps": 1000},
                "network": {"preset": preset},
                "data": {
                    "images": folder,
                    "clips": folder if clips else None,
                    "area": side * side,
                    "crop": None,
                },
                "batch": {"size": photos + clips, "pixels": 2 * side * side * 8},
                "codebook": {"plain_steps": 0, "kmeans": False, "restart_after": 0},
                "batch_norm_steps": 0,
                "optimizer": {"lr": 1e-4, "schedule": {"kind": "constant"}, "muon": {}},
                "adversarial": {"start": 1, "warmup": 0, "layers": 2 if ON_GPU else 1},
                "precision": "bf16" if ON_GPU else "fp32",
                "recompute": ON_GPU,
                "ema": {},
            }
        )
        trainer = build_trainer(recipe, Samples(recipe.data, 0), mesh, lambda step, faults: None)
        pixels = [torch.rand(3, side, side) * 2 - 1 for _ in range(photos)]
        pixels += [torch.rand(8, 3, side, side) * 2 - 1 for _ in range(clips)]
        counter = iter(range(1, 1000))

        def step(trainer=trainer, pixels=pixels, counter=counter) -> Any:  # type: ignore[no-untyped-def]
            number = next(counter)
            first = (number - 1) * len(pixels)
            samples = [Sample(first + i, one) for i, one in enumerate(pixels)]
            return trainer.step(number, samples, lambda values: Verdict())

        yield Case(
            f"{preset}, {photos} photos and {clips} clips of {side}x{side}",
            "ours",
            step,
            lambda result, seconds, count=photos + clips: {"samples_per_second": count / seconds},
            tensors=True,
        )


if __name__ == "__main__":
    main(cases)
