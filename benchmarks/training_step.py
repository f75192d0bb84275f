"""A whole training step at the 8B model's layer shapes, beside transformers with liger-kernel.

A few layers, the whole vocabulary, one document: forward, backward, gradient norm and AdamW, in
bf16 with an fp32 master copy in ours; the others' AdamW moves bf16 weights, which is less work.
`mfu` is of 989 TFLOP/s, counted without what is computed again. Rows of 2 and of 4 layers give the
time of a layer by their difference. On a CPU the tiny preset in fp32.
"""

import gc
from collections.abc import Callable, Iterator
from functools import partial
from tempfile import mkdtemp
from typing import Any

import torch
from harness import Case, main
from torch import Tensor

from emu3_megatron import parallel
from emu3_megatron.config import Recipe, load_recipe
from emu3_megatron.config.model import ModelConfig
from emu3_megatron.data.batches import IGNORE, Batch
from emu3_megatron.training.engines.megatron import MegatronEngine
from emu3_megatron.training.interfaces import EngineSetting, Sums
from emu3_megatron.training.objectives.next_token import NextToken
from emu3_megatron.training.placing import Placer

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
PRESET, TOKENS, QUICK_TOKENS = ("emu3-8b", 5120, 1024) if GPU else ("emu3-tiny", 256, 64)
PEAK = 989e12  # operations a second in bf16 of an H100 or H200, as its maker says
RATE = 1e-5
# Dropout and what is computed again: none, and as stage 1 has them.
OURS = {"emu3": ("0", "none"), "emu3, dropout, selective": ("0.1", "selective")}


def document(vocabulary: Any, length: int) -> Batch:
    """One row of random codes, one document."""
    first, last = vocabulary.first_code, vocabulary.first_code + vocabulary.num_codes
    tokens = torch.randint(first, last, (1, length))
    labels = tokens.roll(-1, dims=1)
    labels[:, -1] = IGNORE
    return Batch(
        tokens,
        labels,
        weights=(labels != IGNORE).float(),
        positions=torch.arange(length)[None],
        boundaries=[torch.tensor([0, length], dtype=torch.int32)],
        order=torch.arange(length)[None, None],
        documents=[],
    )


class Ours:
    """Our engine and objective, as in a run on one GPU."""

    def __init__(self, model: ModelConfig, length: int, dropout: str, recompute: str):
        overrides = {
            "model.preset": PRESET,
            "model.layers": model.layers,
            "model.dropout": dropout,
            "recompute": recompute,
            "precision": "bf16" if GPU else "fp32",
            "run.dir": mkdtemp(),
        }
        settings = [f"{key}={value}" for key, value in overrides.items()]
        recipe = load_recipe(Recipe, "stage1-tiny-cpu", settings)
        vocabulary = recipe.model.vocabulary()
        self.engine = MegatronEngine(recipe.engine, EngineSetting.of(recipe))
        self.objective = NextToken(recipe.objective, vocabulary)
        self.batch = Placer(vocabulary, 0)(document(vocabulary, length))
        if GPU:
            self.batch = self.batch.pin_memory()

    def forward_backward(self) -> None:
        counts = self.objective.counts(self.batch).to(DEVICE, non_blocking=True)

        def forward(decoder: Any, batch: Batch) -> tuple[Tensor, Sums]:
            return self.objective(decoder, batch.inputs.to(DEVICE), counts)

        self.engine.forward_backward([self.batch], forward)

    def step(self) -> None:
        self.forward_backward()
        self.engine.update(self.engine.grad_norm(), RATE)


class Theirs:
    """transformers' Llama of the same sizes, with liger-kernel's parts or without."""

    def __init__(self, model: ModelConfig, length: int, liger: bool):
        from transformers import LlamaConfig, LlamaForCausalLM

        if liger:
            from liger_kernel.transformers import apply_liger_kernel_to_llama

            apply_liger_kernel_to_llama()
        vocabulary = model.vocabulary()
        config = LlamaConfig(
            vocab_size=vocabulary.size,
            hidden_size=model.hidden,
            intermediate_size=model.ffn,
            num_hidden_layers=model.layers,
            num_attention_heads=model.heads,
            num_key_value_heads=model.kv_heads,
            max_position_embeddings=length,
            use_cache=False,
        )
        with torch.device(DEVICE):
            self.model = LlamaForCausalLM(config).to(torch.bfloat16 if GPU else torch.float32)
        self.tokens = document(vocabulary, length).tokens.to(DEVICE)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, fused=True)

    def forward_backward(self) -> None:
        self.optimizer.zero_grad()
        self.model(input_ids=self.tokens, labels=self.tokens).loss.backward()

    def step(self) -> None:
        self.forward_backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()


class Contestant:
    """Builds what it measures when it is first run: a failure is then a reason in its row."""

    def __init__(self, build: Callable[[], Ours | Theirs]):
        self.build = build
        self.built: Ours | Theirs | None = None

    def __call__(self, part: str) -> None:
        self.built = self.built or self.build()
        getattr(self.built, part)()

    def free(self) -> None:
        self.built = None
        gc.collect()
        if GPU:
            torch.cuda.empty_cache()


def operations(model: ModelConfig, length: int) -> float:
    """Of forward and backward: two for each weight and token, three products in all."""
    width = model.head_dim * (2 * model.heads + 2 * model.kv_heads) + 3 * model.ffn
    weights = model.hidden * (model.layers * width + model.vocabulary().size)
    attention = model.layers * model.hidden * length  # of two products, half of them masked
    return 6.0 * length * (weights + attention)


def figures(work: float, length: int, result: Any, seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {"tokens_per_second": length / seconds, "tflops": work / seconds / 1e12}
    return {**found, "mfu": work / seconds / PEAK} if GPU else found


def cases(quick: bool) -> Iterator[Case]:
    torch.manual_seed(0)
    parallel.start(1, 1).seed(0, 0)
    length = QUICK_TOKENS if quick else TOKENS
    builders: dict[str, Callable[[ModelConfig, int], Ours | Theirs]] = {
        name: partial(Ours, dropout=dropout, recompute=recompute)
        for name, (dropout, recompute) in OURS.items()
    }
    builders["transformers"] = partial(Theirs, liger=False)
    builders["transformers + liger"] = partial(Theirs, liger=True)  # last: it changes transformers
    for name, build in builders.items():
        for layers in (2,) if quick else (4, 2):
            model = ModelConfig.model_validate({"preset": PRESET, "layers": layers})
            contestant = Contestant(partial(build, model, length))
            work = partial(figures, operations(model, length), length)
            for part, said in (("forward_backward", "forward and backward"), ("step", "step")):
                case = f"{PRESET}, {layers} layers, {length:,} tokens, {said}"
                yield Case(case, name, partial(contestant, part), work, tensors=True)
            contestant.free()
    parallel.stop()


if __name__ == "__main__":
    main(cases, repeats=10 if GPU else 3)
