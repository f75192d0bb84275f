"""What a token of DPO costs beside one of pre-training, on emu3-mini, both in one run.

A step of DPO is that of a pair: forward and backward of the policy, and the forward of a live
reference. It must take at most 1.1 x the time of a forward and backward of pre-training and two
forwards, over the same tokens. The engine and the objectives are those of a run.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from harness import Case, main
from torch import Tensor

from emu3_megatron import parallel
from emu3_megatron.config import Recipe, load_recipe
from emu3_megatron.config.objectives import DpoConfig, ReferenceSection
from emu3_megatron.data.batches import IGNORE, Batch
from emu3_megatron.model import Inputs, build_decoder
from emu3_megatron.training.engines.megatron import MegatronEngine
from emu3_megatron.training.interfaces import EngineSetting, Objective, Sums
from emu3_megatron.training.objectives.dpo import Dpo
from emu3_megatron.training.objectives.next_token import NextToken
from emu3_megatron.training.placing import Placer
from emu3_megatron.vocabulary import Vocabulary

GPU = torch.cuda.is_available()
# A preset, and tokens of a side: an image of 512 x 512 has 4,096 codes.
SIZES, QUICK = ("emu3-mini", 4160 if GPU else 192), ("emu3-tiny", 64)


class Frozen:
    """A live reference of weights that no checkpoint holds."""

    Config = ReferenceSection

    def __init__(self, section: ReferenceSection, vocabulary: Vocabulary):
        self.section = section
        self.columns: dict[str, Path] = {}

    def prepare(self, engine: MegatronEngine) -> None:
        setting = engine.setting
        bf16 = setting.precision == "bf16"
        self.decoder = build_decoder(setting.model, bf16=bf16, backend=setting.backend)
        self.decoder.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, inputs: Inputs) -> Tensor:
        return self.decoder(inputs, "log_probabilities").log_prob


def pair(vocabulary: Vocabulary, length: int) -> Batch:
    """One row of two documents of random codes."""
    first, last = vocabulary.first_code, vocabulary.first_code + vocabulary.num_codes
    tokens = torch.randint(first, last, (1, 2 * length))
    labels = tokens.roll(-1, dims=1)
    labels[:, length - 1 :: length] = IGNORE
    batch = Batch(
        tokens,
        labels,
        weights=(labels != IGNORE).float(),
        positions=torch.arange(length).repeat(1, 2),
        boundaries=[torch.tensor([0, length, 2 * length], dtype=torch.int32)],
        order=torch.arange(2 * length)[None, None],
        documents=[],
    )
    return Placer(vocabulary, 0)(batch)


def step(engine: MegatronEngine, objective: Objective, batch: Batch) -> None:
    """Forward and backward under an objective."""
    denominators = objective.counts(batch)
    if GPU:
        denominators = denominators.to("cuda", non_blocking=True)

    def forward(decoder: Any, batch: Batch) -> tuple[Tensor, Sums]:
        return objective(decoder, batch.inputs, denominators)

    engine.forward_backward([batch], forward)


def forwards(engine: MegatronEngine, batch: Batch) -> None:
    """Two forwards, each of which gives log-probabilities."""
    with engine.decoder() as decoder:
        for _ in range(2):
            decoder(batch.inputs, "log_probabilities")


def seconds(action: Callable[[], Any]) -> float:
    """On a CPU those of this process alone, where other work may run beside it."""
    clock = time.perf_counter if GPU else time.process_time
    begin = clock()
    action()
    if GPU:
        torch.cuda.synchronize()
    return clock() - begin


class Rounds:
    """Times the three in turn, round after round; the first warms up."""

    def __init__(self, recipe: Recipe, length: int):
        vocabulary = recipe.model.vocabulary()
        engine = MegatronEngine(recipe.engine, EngineSetting.of(recipe))
        dpo = Dpo(DpoConfig(reference={"kind": "dpo:Frozen"}), vocabulary)
        dpo.prepare(engine)
        batch = pair(vocabulary, length)
        batch = replace(batch, inputs=batch.inputs.to("cuda" if GPU else "cpu"))
        self.parts = {
            "pretraining": partial(step, engine, NextToken(recipe.objective, vocabulary), batch),
            "forwards": partial(forwards, engine, batch),
            "dpo": partial(step, engine, dpo, batch),
        }
        self.found: list[dict[str, float]] = []

    def __call__(self) -> list[dict[str, float]]:
        self.found.append({name: seconds(part) for name, part in self.parts.items()})
        return self.found[1:]


def figures(tokens: int, found: list[dict[str, float]], least: float) -> dict[str, Any]:
    """Microseconds a token, from the least times, and what DPO's is of the others' sum."""
    micros = {name: 1e6 * min(one[name] for one in found) / tokens for name in found[0]}
    ratio = micros["dpo"] / (micros["pretraining"] + micros["forwards"])
    return {**{f"{name}_us_a_token": value for name, value in micros.items()}, "ratio": ratio}


def cases(quick: bool) -> Iterator[Case]:
    preset, length = QUICK if quick else SIZES
    torch.manual_seed(0)
    precision = "bf16" if GPU else "fp32"
    settings = [f"model.preset={preset}", f"precision={precision}", f"run.dir={mkdtemp()}"]
    recipe = load_recipe(Recipe, "stage1-tiny-cpu", settings)
    parallel.start(1, 1).seed(recipe.run.seed, 0)
    rounds = Rounds(recipe, length)
    case = f"{preset}, a pair of 2 x {length:,} tokens, {precision}"
    yield Case(case, "emu3", rounds, partial(figures, 2 * length), tensors=True)
    parallel.stop()


if __name__ == "__main__":
    main(cases, repeats=10 if GPU else 3)
