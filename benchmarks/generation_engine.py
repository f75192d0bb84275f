"""Our engine as a contestant of generation.py, of this checkout or of another.

The same file runs in a process of its own over the packages of another commit: it reads tasks from
standard input, a line of JSON each, and answers with what they took.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from emu3_megatron import parallel
from emu3_megatron.config import ModelConfig
from emu3_megatron.generation.images import VisionPrompt, draw
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.grammar import Meta
from emu3_megatron.model import build_decoder

Grid = tuple[int, int]  # codes of an image, height and width
CAPTION = "a tabby cat on a red chair looks past the camera"


@dataclass(frozen=True)
class Task:
    """Images of a caption, guided by Emu3's settings.

    Attributes:
        grids: of the images, [height, width] in codes.
        together: in one batch, or one after another.
        greedy: take the likeliest codes, which all contestants must agree on.
    """

    grids: Sequence[Grid]
    together: bool = True
    greedy: bool = False
    seed: int = 0

    @property
    def settings(self) -> SamplingSettings:
        return SamplingSettings(3.0, float(not self.greedy), 2048, seed=self.seed)

    @property
    def tokens(self) -> int:
        """With those that the grammar forces."""
        return sum(Meta(*grid).num_tokens + 1 for grid in self.grids)


@dataclass(frozen=True)
class Timing:
    """What a task took, and the codes of its images, one behind the other."""

    seconds: float
    cpu_seconds: float
    codes: list[int]


class Engine:
    """Weights drawn from a seed, so that the engines of other commits have the same."""

    def __init__(self, model: ModelConfig, bf16: bool = False):
        self.vocabulary = model.vocabulary()
        self.decoder = build_decoder(model, bf16=bf16).eval()

    def __call__(self, task: Task) -> list[int]:
        prompts = [VisionPrompt(CAPTION, Meta(*grid)) for grid in task.grids]
        batches = [prompts] if task.together else [[prompt] for prompt in prompts]
        drawn = [
            codes_fhw
            for batch in batches
            for codes_fhw in draw(self.decoder, self.vocabulary, batch, task.settings)
        ]
        return [code for codes_fhw in drawn for code in codes_fhw.ravel().tolist()]


def timed(contestant: Any, task: Task) -> Timing:
    """What a contestant of this process takes."""
    begun, cpu_begun = time.perf_counter(), time.process_time()
    codes = contestant(task)
    cpu_ended, ended = time.process_time(), time.perf_counter()
    return Timing(ended - begun, cpu_ended - cpu_begun, codes)


def serve(model: dict[str, Any]) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(1)
    parallel.start(1, 1).seed(0, 0)
    engine = Engine(ModelConfig.model_validate(model))
    for line in sys.stdin:
        print(json.dumps(asdict(timed(engine, Task(**json.loads(line))))), file=answers, flush=True)
    os._exit(0)  # Megatron's groups need no end


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
