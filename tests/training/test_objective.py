"""The objective's sums, over micro-batches, classes and ranks."""

import math
from types import SimpleNamespace

import pytest
import torch
from emu3_kernels.linear_cross_entropy import LinearCrossEntropy
from support.processes import run_processes

from emu3_megatron import parallel
from emu3_megatron.training.objective import Totals, global_weight


def part(loss, weight, nll, count, correct):
    """The sums of one micro-batch, by class text, structure, code."""
    as_tensors = (torch.tensor(float(loss)), torch.tensor(float(weight)))
    return LinearCrossEntropy(
        *as_tensors, *(torch.tensor(x).float() for x in (nll, count, correct))
    )


PARTS = [
    part(6.0, 2.0, nll=[4, 0, 9], count=[2, 0, 3], correct=[1, 0, 0]),
    part(3.0, 1.0, nll=[2, 0, 3], count=[1, 0, 3], correct=[1, 0, 3]),
]


def batch(*weights):
    return SimpleNamespace(weights=torch.tensor([weights]))


def test_the_loss_is_the_weighted_mean_over_micro_batches(mesh):
    assert Totals.over_ranks(PARTS, mesh).loss == (6 + 3) / (2 + 1)


def test_classes_are_averaged_over_their_own_tokens(mesh):
    totals = Totals.over_ranks(PARTS, mesh)

    assert totals.count == (3, 0, 6)
    assert (totals.nll[0], totals.nll[2]) == (6 / 3, 12 / 6)
    assert (totals.accuracy[0], totals.accuracy[2]) == (2 / 3, 3 / 6)


def test_a_class_that_does_not_occur_has_no_mean(mesh):
    totals = Totals.over_ranks(PARTS, mesh)

    assert math.isnan(totals.nll[1])
    assert math.isnan(totals.accuracy[1])


def test_by_class_names_only_what_occurred(mesh):
    assert Totals.over_ranks(PARTS, mesh).by_class() == {
        "nll_text": 2.0,
        "accuracy_text": 2 / 3,
        "tokens_text": 3,
        "tokens_structure": 0,
        "nll_code": 2.0,
        "accuracy_code": 0.5,
        "tokens_code": 6,
    }


def test_a_step_that_weighs_nothing_has_a_loss_of_zero(mesh):
    silent = part(0.0, 0.0, nll=[4, 0, 0], count=[2, 0, 0], correct=[0, 0, 0])

    assert Totals.over_ranks([silent], mesh).loss == 0.0


def test_global_weight_adds_up_the_micro_batches(mesh):
    weight = global_weight([batch(1.0, 0.5), batch(0.5, 0.0)], torch.device("cpu"))

    assert weight.item() == 2.0


def test_a_global_weight_of_nothing_can_be_divided_by(mesh):
    weight = global_weight([batch(0.0, 0.0)], torch.device("cpu"))

    assert weight > 0
    assert torch.zeros(()) / weight == 0


def sums_of_a_rank(context):
    """This rank's view of the global weight and of the totals; rank r's batch weighs r + 1."""
    mesh = parallel.start(context=context)
    # Context parallel ranks read the same batch and compute different tokens of it.
    weight = global_weight([batch(float(mesh.data_rank + 1))], mesh.device)
    totals = Totals.over_ranks([PARTS[mesh.rank]], mesh)
    parallel.stop()
    return weight.item(), totals.loss, totals.count


@pytest.mark.parametrize(("context", "weight"), [(1, 1.0 + 2.0), (2, 1.0)], ids=["DP 2", "CP 2"])
def test_two_ranks_agree_on_the_sums(context, weight):
    expected = (weight, (6 + 3) / (2 + 1), (3, 0, 6))

    assert run_processes(sums_of_a_rank, 2, context) == [expected, expected]
