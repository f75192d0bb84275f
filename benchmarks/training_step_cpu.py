"""A training step on a CPU beside a plain torch decoder of the same shape, weights and loss.

The step is a run's: forward, backward, gradient norm, clipping, AdamW, of one row of two documents,
without dropout. Both take turns, round after round, in CPU time. Target: at most 1.15 x plain's.
"""

from collections.abc import Iterator
from functools import partial
from tempfile import mkdtemp
from typing import Any

import torch
import torch.nn.functional as F
from dpo import pair, seconds
from harness import write_rows
from torch import Tensor, nn

from emu3_megatron import parallel
from emu3_megatron.config import ModelConfig, Recipe, load_recipe
from emu3_megatron.data.batches import IGNORE, Batch
from emu3_megatron.training.engines.megatron import MegatronEngine
from emu3_megatron.training.interfaces import EngineSetting, Sums
from emu3_megatron.training.objectives.next_token import NextToken

ROUNDS = 12


class Layer(nn.Module):
    def __init__(self, model: ModelConfig):
        super().__init__()
        h, d = model.hidden, model.head_dim
        self.groups, self.dim, self.eps = model.kv_heads, d, model.norm_epsilon
        self.norms = nn.ParameterList(torch.ones(h) for _ in range(2))
        self.qkv = nn.Linear(h, (model.heads + 2 * model.kv_heads) * d, bias=False)
        self.out = nn.Linear(model.heads * d, h, bias=False)
        self.gate_up = nn.Linear(h, 2 * model.ffn, bias=False)
        self.down = nn.Linear(model.ffn, h, bias=False)

    def forward(self, x_bsh: Tensor, cosines: Tensor, sines: Tensor, seen: Tensor) -> Tensor:
        mixed = self.qkv(F.rms_norm(x_bsh, x_bsh.shape[-1:], self.norms[0], self.eps))
        mixed = mixed.unflatten(-1, (self.groups, -1, self.dim))
        query, key, value = (
            part.flatten(2, 3).transpose(1, 2)
            for part in mixed.split([mixed.shape[3] - 2, 1, 1], dim=3)
        )
        query, key = (
            t * cosines + torch.cat([-t.chunk(2, -1)[1], t.chunk(2, -1)[0]], -1) * sines
            for t in (query, key)
        )
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)
        x_bsh = x_bsh + self.out(out.transpose(1, 2).flatten(2))
        normed = F.rms_norm(x_bsh, x_bsh.shape[-1:], self.norms[1], self.eps)
        gate, up = self.gate_up(normed).chunk(2, dim=-1)
        return x_bsh + self.down(F.silu(gate) * up)


class Plain(nn.Module):
    """The decoder as one would write it in torch, with a dense mask and all logits."""

    def __init__(self, model: ModelConfig, ours: nn.Module):
        super().__init__()
        self.eps = model.norm_epsilon
        self.rope = model.rope_base ** -(torch.arange(0, model.head_dim, 2) / model.head_dim)
        rows = model.vocabulary().size
        self.embedding = nn.Embedding(rows, model.hidden)
        self.layers = nn.ModuleList(Layer(model) for _ in range(model.layers))
        self.norm = nn.Parameter(torch.ones(model.hidden))
        self.head = nn.Linear(model.hidden, rows, bias=False)
        matrices = [weight for weight in self.parameters() if weight.dim() == 2]
        theirs = [weight for weight in ours.parameters() if weight.dim() == 2]
        with torch.no_grad():
            for mine, other in zip(matrices, _in_order(theirs), strict=True):
                mine.copy_(other[: len(mine)])

    def forward(self, batch: Batch) -> Tensor:
        positions_bs = batch.inputs.positions_bs
        angles = positions_bs[:, None, :, None] * self.rope
        angles = torch.cat([angles, angles], dim=-1)
        documents_bs = (positions_bs == 0).cumsum(1)
        seen = (documents_bs[:, :, None] == documents_bs[:, None]).tril()[:, None]
        x_bsh = self.embedding(batch.inputs.tokens_bs)
        for layer in self.layers:
            x_bsh = layer(x_bsh, angles.cos(), angles.sin(), seen)
        logits = self.head(F.rms_norm(x_bsh, self.norm.shape, self.norm, self.eps))
        return F.cross_entropy(
            logits.flatten(0, 1), batch.inputs.labels_bs.flatten().long(), ignore_index=IGNORE
        )


def _in_order(weights: list[Tensor]) -> list[Tensor]:
    """Embedding, then each layer's qkv, projection, gates and output, then head.

    Megatron's layer has its projection before its qkv.
    """
    first, *layers, last = weights
    quads = [layers[i : i + 4] for i in range(0, len(layers), 4)]
    return [first, *(w for out, qkv, up, down in quads for w in (qkv, out, up, down)), last]


class Ours:
    def __init__(self, recipe: Recipe, batch: Batch):
        self.engine = MegatronEngine(recipe.engine, EngineSetting.of(recipe))
        self.objective = NextToken(recipe.objective, recipe.model.vocabulary())
        self.batch, self.lr, self.loss = batch, recipe.optimizer.lr, 0.0

    def step(self) -> None:
        denominators = self.objective.counts(self.batch)

        def forward(decoder: Any, batch: Batch) -> tuple[Tensor, Sums]:
            loss, sums = self.objective(decoder, batch.inputs, denominators)
            self.loss = loss.item()
            return loss, sums

        self.engine.forward_backward([self.batch], forward)
        self.engine.update(self.engine.grad_norm(), self.lr)


class Theirs:
    def __init__(self, recipe: Recipe, batch: Batch, ours: nn.Module):
        settings = recipe.optimizer
        self.model, self.batch, self.clip = Plain(recipe.model, ours), batch, settings.clip
        self.adam = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.lr,
            betas=(settings.beta1, settings.beta2),
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )
        self.loss = 0.0

    def step(self) -> None:
        self.adam.zero_grad()
        loss = self.model(self.batch)
        self.loss = loss.item()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.adam.step()


def rows(quick: bool) -> Iterator[dict[str, Any]]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = [
        "precision=fp32",
        "model.dropout=0",
        "objective.z_loss=0",
        "objective.weights={code: 1, text: 1, structure: 1}",
        f"run.dir={mkdtemp()}",
    ]
    recipe = load_recipe(Recipe, "stage1-tiny-cpu", settings)
    parallel.start().seed(recipe.run.seed, 0)
    batch = pair(recipe.model.vocabulary(), 64 if quick else recipe.context // 2)
    ours = Ours(recipe, batch)
    theirs = Theirs(recipe, batch, ours.engine.live)
    found: dict[str, list[float]] = {"emu3": [], "torch": []}
    losses = []
    for _ in range(3 if quick else ROUNDS):
        for name, side in (("emu3", ours), ("torch", theirs)):
            found[name].append(seconds(partial(side.step)))
        losses.append((ours.loss, theirs.loss))
    least = {name: 1e3 * min(times[1:]) for name, times in found.items()}
    middle = {name: 1e3 * sorted(times[1:])[len(times) // 2] for name, times in found.items()}
    yield {
        "case": f"stage1-tiny-cpu, {batch.tokens.numel()} tokens",
        **{f"{name}_cpu_min_ms": value for name, value in least.items()},
        **{f"{name}_cpu_median_ms": value for name, value in middle.items()},
        "ratio": least["emu3"] / least["torch"],
        "losses_differ": max(abs(a - b) / b for a, b in losses[:2]),
    }


if __name__ == "__main__":
    write_rows(rows)
