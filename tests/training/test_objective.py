"""The weighted next-token loss: its sums over micro-batches, classes and ranks."""

from types import SimpleNamespace

import pytest
import torch
from emu3_kernels.linear_cross_entropy import LinearCrossEntropy
from support.processes import run_processes
from support.steps import start
from support.tiny import VOCABULARY, make_packs, tiny_recipe

from emu3_megatron import parallel
from emu3_megatron.config.objectives import NextTokenConfig
from emu3_megatron.training.objectives.next_token import NextToken

OBJECTIVE = NextToken(NextTokenConfig(), VOCABULARY)


def part(loss, weight, nll, count, correct):
    """The sums of one micro-batch, by class text, structure, code."""
    values = {"loss": loss, "weight": weight, "nll": nll, "count": count, "correct": correct}
    return {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}


PARTS = [
    part(6.0, 2.0, nll=[4, 0, 9], count=[2, 0, 3], correct=[1, 0, 0]),
    part(3.0, 1.0, nll=[2, 0, 3], count=[1, 0, 3], correct=[1, 0, 3]),
]


def batch(*weights):
    return SimpleNamespace(weights=torch.tensor([weights]))


def metrics_of(parts):
    return OBJECTIVE.metrics({name: sum(part[name] for part in parts) for name in parts[0]})


def test_the_loss_is_the_weighted_mean_over_micro_batches():
    assert metrics_of(PARTS)["loss"] == (6 + 3) / (2 + 1)


def test_classes_are_averaged_over_their_own_tokens_and_named_where_they_occur():
    assert metrics_of(PARTS) == {
        "loss": 3.0,
        "nll_text": 2.0,
        "accuracy_text": pytest.approx(2 / 3),
        "tokens_text": 3,
        "tokens_structure": 0,
        "nll_code": 2.0,
        "accuracy_code": 0.5,
        "tokens_code": 6,
    }


def test_a_step_that_weighs_nothing_has_a_loss_of_zero():
    silent = part(0.0, 0.0, nll=[4, 0, 0], count=[2, 0, 0], correct=[0, 0, 0])

    assert metrics_of([silent])["loss"] == 0.0


def test_counts_are_the_weights_of_all_labels():
    assert OBJECTIVE.counts(batch(1.0, 0.5)).tolist() == [1.5]


def test_a_denominator_of_nothing_can_be_divided_by():
    sums = LinearCrossEntropy(*(torch.zeros(n) for n in ((), (), 3, 3, 3)))
    decoder = lambda inputs, want, z_loss, **settings: sums

    loss, _ = OBJECTIVE(decoder, None, torch.zeros(1, dtype=torch.float64))

    assert loss == 0


def sums_of_a_rank(recipe):
    """This rank's view of the denominator and of the metrics; rank r's batch weighs r + 1."""
    steps = start(recipe)
    # Context parallel ranks read the same batch and compute different tokens of it.
    denominators = steps.trainer._denominators([batch(float(steps.mesh.data_rank + 1))])
    metrics = OBJECTIVE.metrics(steps.trainer.sum([PARTS[steps.mesh.rank]]))
    parallel.stop()
    return denominators.tolist(), metrics["loss"], metrics["tokens_text"]


@pytest.mark.parametrize(("context", "weight"), [(1, 1.0 + 2.0), (2, 1.0)], ids=["DP 2", "CP 2"])
def test_two_ranks_agree_on_the_sums(tmp_path, context, weight):
    expected = ([weight], (6 + 3) / (2 + 1), 3)
    recipe = tiny_recipe(make_packs(tmp_path), tmp_path, parallel={"context": context})

    assert run_processes(sums_of_a_rank, 2, recipe) == [expected, expected]
