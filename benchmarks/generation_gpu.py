"""Generation on a GPU, at Emu3-8B's sizes in bf16, beside the floor and transformers.

A figure is of the middle of an image: half of it is given, and some of the codes behind it are
timed, so that keys and values have their mean number. `floor` is the time to read weights, keys and
values at the bandwidth that copying reaches on this device.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from generation_engine import CAPTION, Engine, Grid, Task, timed

from emu3_megatron import parallel
from emu3_megatron.config import ModelConfig
from emu3_megatron.generation.estimate import measure_bandwidth, step_bytes
from emu3_megatron.generation.generator import Generator
from emu3_megatron.generation.jobs import Request
from emu3_megatron.grammar import Meta, vision_prompt

WARM = 8  # steps: prompts are read, kernels compiled, graphs captured


@dataclass(frozen=True)
class Half:
    """Images of a grid, half of which is given, and how many tokens more are drawn and timed."""

    grid: Grid
    images: int
    tokens: int

    @property
    def meta(self) -> Meta:
        return Meta(*self.grid)

    def requests(self, engine: Engine) -> list[Request]:
        """Whole rows of codes are given, each with its EOL."""
        vocabulary, (height, width) = engine.vocabulary, self.grid
        random = np.random.default_rng(0)
        codes_hw = random.integers(vocabulary.num_codes, size=(height // 2, width))
        rows = np.pad(codes_hw + vocabulary.first_code, ((0, 0), (0, 1)))
        rows[:, -1] = vocabulary.end_of_line
        prompts = [
            np.append(vision_prompt(vocabulary, text, self.meta), rows) for text in (CAPTION, "")
        ]
        return [Request(*prompts, stop=(vocabulary.vision_end,))] * self.images

    def seconds(self, engine: Engine) -> float:
        """A token of one image, all images at once."""
        requests, settings = self.requests(engine), Task([self.grid]).settings
        most = self.tokens + 2 * WARM
        generator = Generator(
            engine.decoder,
            engine.vocabulary,
            rows=2 * self.images,
            capacity=len(requests[0].prompt) + most,
        )
        for request in requests:
            generator.submit(request, settings, max_tokens=most)
        count = lambda: sum(len(news.tokens) for news in generator.step())
        while not count():  # prompts are read in pieces
            pass
        for _ in range(WARM):
            count()
        torch.cuda.synchronize()
        begun, drawn = time.perf_counter(), 0
        while not generator.is_idle:
            drawn += count()
        torch.cuda.synchronize()
        return (time.perf_counter() - begun) / drawn

    def floor(self, model: ModelConfig, bandwidth: float) -> float:
        """Seconds; all images' rows are read in one step, and EOL costs no step of its own."""
        held = 2 * self.images * self.meta.num_tokens // 2
        step = step_bytes(model, "bf16", held) / bandwidth
        return step / self.images * self.grid[1] / (self.grid[1] + 1)


def gpu_rows(quick: bool) -> Iterator[dict[str, Any]]:
    parallel.start(1, 1).seed(0, 0)
    model = ModelConfig(preset="emu3-mini" if quick else "emu3-8b")
    engine = Engine(model, bf16=True)
    bandwidth = measure_bandwidth(torch.device("cuda"))
    grids: Sequence[Grid] = [(16, 16)] if quick else [(90, 90), (64, 64)]
    for grid in grids:
        yield from _ours(engine, model, grid, bandwidth)
    yield from _peers(engine, model, grids[0])
    if not quick:
        task = Task(grids[:1])
        whole = timed(engine, task)
        yield {
            "case": f"{_name(grids[0])}, whole",
            "implementation": "emu3",
            "ms_a_token": 1e3 * whole.seconds / task.tokens,
            "seconds": whole.seconds,
        }
    parallel.stop()


def _ours(
    engine: Engine, model: ModelConfig, grid: Grid, bandwidth: float
) -> Iterator[dict[str, Any]]:
    alone = 0.0
    for images in (1, 8):
        half = Half(grid, images, 128)
        seconds = half.seconds(engine)
        alone = alone or seconds
        floor = half.floor(model, bandwidth)
        yield {
            "case": _name(grid, images),
            "implementation": "emu3",
            "ms_a_token": 1e3 * seconds,
            "floor_ms": 1e3 * floor,
            "over_floor": seconds / floor,
            "throughput_of_one": alone / seconds,
            "gb_s_by_copying": bandwidth / 1e9,
        }


def _peers(engine: Engine, model: ModelConfig, grid: Grid) -> Iterator[dict[str, Any]]:
    """What transformers takes at the beginning of an image, where it has the least to read."""
    names = {"case": _name(grid), "implementation": "transformers"}
    try:
        from generation_peers import ByGenerate, PlainLoop, in_transformers
    except ImportError as error:
        yield {**names, "reason": str(error)}
        return
    theirs = in_transformers(engine, model)
    for name, kind in (("transformers.generate", ByGenerate), ("batched loop", PlainLoop)):
        peer = kind(theirs, engine.vocabulary)
        for limit in (8, 64):  # the first warms up
            peer.limit = limit
            seconds = timed(peer, Task([grid])).seconds / limit
        yield {**names, "implementation": name, "ms_a_token": 1e3 * seconds}


def _name(grid: Grid, images: int = 1) -> str:
    return f"{'one image' if images == 1 else f'{images} at once'} of {grid[0]}x{grid[1]}"
