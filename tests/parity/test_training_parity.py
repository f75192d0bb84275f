"""Ten steps of our trainer and of a plain loop over transformers: what we train is that model."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from support.batches import reader, setting_of
from support.processes import run_processes
from support.tiny import CONTEXT, VOCABULARY, make_packs, tiny_recipe
from transformers import Emu3ForCausalLM, Emu3TextConfig

from emu3_megatron.cli.train import run_training
from emu3_megatron.config import Recipe
from emu3_megatron.data.batches import Batch
from emu3_megatron.data.mixed import MixtureData
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.interchange.importing import import_folder

STEPS = 10


def make_theirs() -> Emu3ForCausalLM:
    torch.manual_seed(0)
    config = Emu3TextConfig(
        vocab_size=VOCABULARY.size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        attention_dropout=0.0,
        pad_token_id=VOCABULARY.pad,
        bos_token_id=VOCABULARY.bos,
        eos_token_id=VOCABULARY.eos,
    )
    return Emu3ForCausalLM(config)


@pytest.fixture
def recipe(tmp_path: Path, mesh) -> Recipe:
    """Plain mean loss over whole rows, from weights that transformers drew; a constant rate."""
    make_theirs().save_pretrained(tmp_path / "theirs")
    import_folder(tmp_path / "theirs", tmp_path / "ours")
    return tiny_recipe(
        make_packs(tmp_path),
        tmp_path / "run",
        run={"steps": 10**6, "stop_after": STEPS, "init_from": str(tmp_path / "ours")},
        data={"reset_at_documents": False, "null_prompt": 0},
        objective={"weights": {"code": 1.0}},
        optimizer={"lr": 3e-3, "schedule": {"kind": "constant"}},
    )


def our_losses(recipe: Recipe) -> list[float]:
    run_training(recipe)
    rows = (recipe.run.dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(row)["loss"] for row in rows]


def their_optimizer(model: Emu3ForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    settings = recipe.optimizer
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
    )


def their_batches(recipe: Recipe) -> Iterator[Batch]:
    whole = recipe.batch.model_copy(update={"micro_size": recipe.batch.size})
    data = MixtureData(recipe.data, setting_of(recipe, batch=whole))
    for (batch,) in data.batches(reader(), 0, STEPS):
        yield batch


def their_losses(recipe: Recipe) -> list[float]:
    model = make_theirs().train()
    optimizer = their_optimizer(model, recipe)
    losses = []
    for batch in their_batches(recipe):
        logits_bsv = model(batch.tokens).logits
        loss = torch.nn.functional.cross_entropy(logits_bsv.flatten(0, 1), batch.labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_ten_steps_have_the_losses_of_transformers(recipe):
    expected = their_losses(recipe)

    (losses,) = run_processes(our_losses, 1, recipe)

    assert len(losses) == STEPS
    assert losses == pytest.approx(expected, abs=1e-4)
    assert expected[-1] < expected[0] - 0.5  # they moved


CLASS_WEIGHTS = {"text": 1.0, "structure": 0.7, "code": 0.5}
Z_LOSS = 1e-3


@pytest.fixture
def full_recipe(recipe: Recipe, tmp_path: Path) -> Recipe:
    """Packed documents with context, weights of classes, z-loss, a cosine, three micro-batches."""
    return tiny_recipe(
        tmp_path / "tiny.pack",
        tmp_path / "full-run",
        run={"steps": STEPS, "init_from": str(recipe.run.init_from)},
        objective={"weights": CLASS_WEIGHTS, "z_loss": Z_LOSS},
        optimizer={
            "lr": 1e-2,
            "schedule": {"kind": "cosine", "warmup_steps": 3, "min_lr": 1e-3},
        },
        batch={"size": 6, "micro_size": 2},
    )


def cosine(step: int) -> float:
    """Up to 1e-2 in three steps, then half a cosine that would reach 1e-3 one step after ten."""
    if step <= 3:
        return 1e-2 * step / 3
    return 1e-3 + (1e-2 - 1e-3) * 0.5 * (1 + math.cos(math.pi * (step - 3) / 8))


def weights_of_labels(store: TokenStore, number: int, piece: np.ndarray) -> np.ndarray:
    """By hand: of each token's next one in its document's piece."""
    document = store.document(number)
    whole = np.concatenate([span.tokens for span in document.spans])
    trained = np.concatenate([np.full(len(s.tokens), s.trained) for s in document.spans])
    starts = range(len(whole) - len(piece) + 1)
    first = next(i for i in starts if np.array_equal(whole[i : i + len(piece)], piece))
    weights = np.zeros(len(piece))
    for i, label in enumerate(piece[1:]):
        kind = "structure" if label in VOCABULARY.structure else "text"
        kind = "code" if label >= VOCABULARY.first_code else kind
        weights[i] = CLASS_WEIGHTS[kind] * trained[first + i + 1]
    return weights


def loss_of_documents(model: Emu3ForCausalLM, batch: Batch, store: TokenStore) -> torch.Tensor:
    """Every document by itself: weighted NLL and squared log-partition over the sum of weights."""
    total, weight = torch.zeros(()), 0.0
    for row, bounds, documents in zip(batch.tokens, batch.boundaries, batch.documents, strict=True):
        for first, end, about in zip(bounds, bounds[1:], documents, strict=False):  # then padding
            piece = row[int(first) : int(end)]
            weights = torch.from_numpy(
                weights_of_labels(store, about.document, piece.numpy())[:-1]
            ).float()
            logits_tv = model(piece[None]).logits[0, :-1]
            partition = logits_tv.logsumexp(-1)
            nll = partition - logits_tv.gather(-1, piece[1:, None])[:, 0]
            total = total + (weights * (nll + Z_LOSS * partition**2)).sum()
            weight += weights.sum().item()
    return total / weight


def test_ten_steps_with_everything_on_have_the_losses_of_transformers(full_recipe, tmp_path):
    """Accumulation over three micro-batches, through the loop that `emu3 train` runs."""
    model = make_theirs().train()
    optimizer = their_optimizer(model, full_recipe)
    store = TokenStore(tmp_path / "shard", VOCABULARY)
    expected = []
    for step, batch in enumerate(their_batches(full_recipe), start=1):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step)
        loss = loss_of_documents(model, batch, store)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), full_recipe.optimizer.clip)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())

    (losses,) = run_processes(our_losses, 1, full_recipe)

    assert losses == pytest.approx(expected, abs=1e-4)
    assert expected[-1] < expected[0] - 0.5  # they moved
