"""A rank's part of a batch, as data workers cut it out."""

from dataclasses import replace

import pytest
import torch
from support.batches import reader, setting_of
from support.tiny import VOCABULARY, make_packs, tiny_recipe

from emu3_megatron.config import Recipe
from emu3_megatron.data.batches import IGNORE, Batch
from emu3_megatron.data.mixed import MixtureData
from emu3_megatron.model import Inputs
from emu3_megatron.training.placing import Placer


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("packs")
    return tiny_recipe(make_packs(folder), folder, batch={"size": 2, "micro_size": 2})


def first_batch(recipe: Recipe) -> Batch:
    data = MixtureData(recipe.data, setting_of(recipe))
    ((batch,),) = data.batches(reader(context_size=2), 0, 1)
    return batch


@pytest.mark.parametrize("rank", [0, 1])
def test_kept_tokens_are_those_with_a_label_position_first(recipe: Recipe, rank: int) -> None:
    batch = first_batch(recipe)

    inputs: Inputs = Placer(VOCABULARY, rank)(batch).inputs

    labels_sb = inputs.labels_bs.T
    assert labels_sb.shape == (batch.tokens.shape[1] // 2, 2)
    expected = [i for i, label in enumerate(labels_sb.flatten().tolist()) if label != IGNORE]
    assert 0 < len(expected) < labels_sb.numel()
    assert inputs.kept.tolist() == expected


def test_a_rank_without_any_label_keeps_nothing(recipe: Recipe) -> None:
    batch = first_batch(recipe)
    silent = replace(batch, labels=torch.full_like(batch.labels, IGNORE))

    inputs: Inputs = Placer(VOCABULARY, 0)(silent).inputs

    assert inputs.kept.shape == (0,)
