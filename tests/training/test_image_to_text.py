"""Image to text: understanding and pure text, vision loss off; codes and their rows stay alone."""

import numpy as np
import pytest
from pydantic import ValidationError
from support.processes import run_processes
from support.shards import write_documents
from support.steps import losses_of, start
from support.tiny import CONTEXT, VOCABULARY, tiny_recipe

from emu3_megatron import parallel
from emu3_megatron.config.objectives import NextTokenConfig
from emu3_megatron.data.packing.packs import pack_shards
from emu3_megatron.grammar import plain_text, understanding

TEXT_ALONE = {"text": 1.0, "structure": 0.0, "code": 0.0}


@pytest.fixture
def pack(tmp_path):
    random = np.random.default_rng(0)
    images = [random.integers(0, VOCABULARY.num_codes, (3, 4)) for _ in range(16)]
    documents = [understanding(VOCABULARY, codes, f"it is {i}") for i, codes in enumerate(images)]
    documents += [plain_text(VOCABULARY, "words " * n) for n in range(1, 9)]
    write_documents(tmp_path / "shard", VOCABULARY, documents)
    pack_shards([tmp_path / "shard"], tmp_path / "a.pack", CONTEXT, vocabulary=VOCABULARY)
    return tmp_path / "a.pack"


def recipe_of(pack, folder, *, codes=False, tensor=1, **sections):
    return tiny_recipe(
        pack,
        folder,
        objective={"kind": "next_token", "weights": TEXT_ALONE, "codes": codes},
        optimizer={"lr": 1e-2, "weight_decay": 0.0, "schedule": {"kind": "constant"}},
        batch={"size": 4, "micro_size": 2},
        parallel={"tensor": tensor},
        **sections,
    )


def what_moves(recipe):
    """Over two steps: losses, labels by class, and which rows of this rank's head move."""
    steps = start(recipe)
    weight_vh = steps.engine.live.head.weight
    before_vh = weight_vh.detach().clone()
    results = steps.take(0, 2)
    moved = (weight_vh.detach() != before_vh).any(1).tolist()
    parallel.stop()
    return losses_of(results), results[0].metrics, moved


@pytest.mark.parametrize("tensor", [1, 2])
def test_code_rows_of_the_head_get_no_gradient(pack, tmp_path, tensor):
    """Adam moves every weight that has any; the second of two ranks holds few rows of text."""
    found = run_processes(what_moves, tensor, recipe_of(pack, tmp_path, tensor=tensor))

    moved = [row for _, _, rows in found for row in rows]
    assert not any(moved[VOCABULARY.first_code :])
    assert all(moved[: VOCABULARY.first_code])
    _, metrics, _ = found[0]
    assert metrics["tokens_code"] == 0
    assert metrics["tokens_text"] > 0


def test_the_full_softmax_moves_them(pack, tmp_path):
    """Where codes are candidates for a text, each step makes them less likely."""
    ((_, metrics, moved),) = run_processes(what_moves, 1, recipe_of(pack, tmp_path, codes=True))

    assert all(moved[VOCABULARY.first_code : VOCABULARY.size])
    assert metrics["tokens_code"] > 0  # measured, with weight 0


def test_ranks_agree(pack, tmp_path):
    alone, (together, _) = (
        [
            losses
            for losses, _, _ in run_processes(what_moves, n, recipe_of(pack, tmp_path, tensor=n))
        ]
        for n in (1, 2)
    )

    assert together == pytest.approx(alone[0], abs=1e-5)


def test_codes_that_are_left_out_have_no_weight():
    with pytest.raises(ValidationError, match=r"weights\.code=0\.5 trains them; set it to 0"):
        NextTokenConfig(codes=False)
