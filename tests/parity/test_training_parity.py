"""Ten steps of our trainer and of a plain loop over transformers: what we train is that model."""

import json
from pathlib import Path

import pytest
import torch
from support.batches import reader, setting_of
from support.processes import run_processes
from support.tiny import CONTEXT, VOCABULARY, make_packs, tiny_recipe
from transformers import Emu3ForCausalLM, Emu3TextConfig

from emu3_megatron.cli.train import run_training
from emu3_megatron.config import Recipe
from emu3_megatron.data.mixed import MixtureData
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


def their_losses(recipe: Recipe) -> list[float]:
    model = make_theirs().train()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    settings = recipe.optimizer
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": norms, "weight_decay": 0.0},
        ],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
    )
    whole = recipe.batch.model_copy(update={"micro_size": recipe.batch.size})
    data = MixtureData(recipe.data, setting_of(recipe, batch=whole))
    losses = []
    for (batch,) in data.batches(reader(), 0, STEPS):
        logits_bsv = model(batch.tokens).logits
        loss = torch.nn.functional.cross_entropy(logits_bsv.flatten(0, 1), batch.labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
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
