"""DPO's loss, gradients and metrics against plain fp64 torch, side by side and token by token."""

from typing import Any

import pytest
import torch
from support.given import batch_of, computed, dpo, pieces_of, random_values
from support.pairs import CONTEXT, answer, drawing, pairs_of_images
from support.simulated_ranks import simulate
from support.tiny import VOCABULARY
from torch import Tensor
from torch.nn.functional import logsigmoid

from emu3_megatron.data.batches import Batch
from emu3_megatron.data.rows import RowBuilder
from emu3_megatron.errors import InputError
from emu3_megatron.training.objectives.dpo import Sides
from emu3_megatron.training.objectives.preference import loss_without_preference

VARIANTS = {
    "sigmoid": {"beta": 0.1},
    "smoothed": {"beta": 0.3, "label_smoothing": 0.2},
    "normalized": {"variant": "normalized", "beta": 2.0},
    "normalized, smoothed": {"variant": "normalized", "beta": 2.0, "label_smoothing": 0.1},
    "ipo": {"variant": "ipo", "beta": 0.5},
    "hinge": {"variant": "hinge", "beta": 0.1},
}


IMAGES = [pairs_of_images(4)[:2], pairs_of_images(4)[4:]]
ANSWERS = [
    [
        answer("why", "so " * 20),
        answer("why", "no"),
        answer("who", "me"),
        answer("who", "you " * 9),
    ],
    [answer("how", "thus"), answer("how", "so and so")],
]


def expected(objective: Any, batch: Batch) -> dict[str, Any]:
    """The same by plain torch: a loop over pairs, fp64 throughout."""
    section = objective.section
    policy, reference = (values.double() for values in random_values(batch))
    policy.requires_grad_()
    losses, nll, tokens, rewards, sums = [], 0.0, 0, [], []
    for row, bounds in enumerate(batch.boundaries):
        documents = len(batch.documents[row])
        for first in range(0, documents, 2):
            ratios, averages, logps = [], [], []
            for side in (first, first + 1):
                part = slice(int(bounds[side]), int(bounds[side + 1]))
                counted = batch.weights[row, part] > 0
                log_probs = policy[row, part][counted]
                ratios.append((log_probs - reference[row, part][counted]).sum())
                averages.append(ratios[-1] / counted.sum())
                logps.append(float(log_probs.detach().sum()))
                if side == first:
                    nll, tokens = nll - log_probs.sum(), tokens + int(counted.sum())
            scores = averages if section.variant in ("normalized", "ipo") else ratios
            losses.append(loss_of_pair(scores[0] - scores[1], section))
            rewards.append([section.beta * float(ratio.detach()) for ratio in ratios])
            sums.append(logps)
    preference = torch.stack(losses).mean()
    loss = preference + section.nll * nll / tokens
    loss.backward()
    chosen, rejected = (sum(of) / len(of) for of in zip(*rewards, strict=True))
    accurate = sum(one > other for one, other in rewards)
    return {
        "loss": loss.detach(),
        "gradient": policy.grad,
        "metrics": {
            "loss": float(loss.detach()),
            "preference_loss": float(preference.detach()),
            "nll/chosen": float(nll.detach()) / tokens,
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": accurate / len(rewards),
            "logps/chosen": sum(one for one, _ in sums) / len(sums),
            "logps/rejected": sum(other for _, other in sums) / len(sums),
            "num_pairs": len(rewards),
        },
    }


def loss_of_pair(delta: Tensor, section: Any) -> Tensor:
    if section.variant == "ipo":
        return (delta - 1 / (2 * section.beta)) ** 2
    if section.variant == "hinge":
        return torch.clamp(1 - section.beta * delta, min=0)
    margin, smoothing = section.beta * delta, section.label_smoothing
    return -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)


@pytest.mark.parametrize("tokens", ["codes", "answer"])
@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients_are_those_of_plain_fp64(name: str, tokens: str):
    objective = dpo(VOCABULARY, tokens=tokens, **VARIANTS[name])
    batch = batch_of(IMAGES, tokens)

    loss, gradient, sums = computed(objective, batch)

    exact = expected(objective, batch)
    assert loss == pytest.approx(float(exact["loss"]), rel=1e-6)
    torch.testing.assert_close(gradient.double(), exact["gradient"], rtol=1e-6, atol=1e-9)
    found = objective.metrics(sums)
    assert {key: found[key] for key in exact["metrics"]} == pytest.approx(
        exact["metrics"], rel=1e-9
    )


def test_text_answers_are_compared_alike():
    objective = dpo(VOCABULARY, tokens="answer")
    batch = batch_of(ANSWERS, "answer")

    loss, gradient, _ = computed(objective, batch)

    exact = expected(objective, batch)
    assert loss == pytest.approx(float(exact["loss"]), rel=1e-6)
    torch.testing.assert_close(gradient.double(), exact["gradient"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("ranks", [2, 4])
def test_each_context_parallel_rank_has_the_gradients_of_its_own_tokens(ranks: int):
    """Summed over ranks they are those of one: not ranks times them."""
    objective = dpo(VOCABULARY, variant="normalized", beta=2.0)
    alone = computed(objective, batch_of(IMAGES))

    parts = simulate(
        ranks,
        lambda exchange: computed(
            objective, batch_of(IMAGES, context_size=ranks), exchange.rank, exchange
        ),
    )

    gradient = sum(gradient for _, gradient, _ in parts)
    torch.testing.assert_close(gradient, alone[1], rtol=1e-6, atol=1e-9)
    sums = {name: sum(part[2][name] for part in parts) for name in alone[2]}
    metrics = objective.metrics(sums)
    assert metrics == pytest.approx(objective.metrics(alone[2]), rel=1e-9)
    assert all(part[1].count_nonzero() > 0 for part in parts)


def test_counts_are_the_pairs_and_the_chosen_codes_of_whole_rows():
    batch = batch_of(IMAGES)

    pairs, tokens = dpo(VOCABULARY).counts(batch).tolist()

    assert (pairs, tokens) == (3, 8 * 12 + 3 * 3 + 4 * 4)


def test_differences_are_taken_before_anything_is_summed():
    """At 8,100 codes of -7 nats each, sums of fp32 would lose what tells the sides apart."""
    generator = torch.Generator().manual_seed(0)
    reference = -7 - torch.rand(8100, generator=generator)
    policy = reference + 5e-4
    exact = float((policy.double() - reference.double()).sum())

    late = float(policy.cumsum(0)[-1] - reference.cumsum(0)[-1])
    sides = [torch.tensor([0, 8100, 8100])]
    early = float(Sides.of(sides).sum((policy.double() - reference.double())[None])[0])

    assert early == pytest.approx(exact, abs=1e-9)
    assert abs(late - exact) > 1e-3


def test_what_drifted_is_told_by_class_of_the_vocabulary():
    objective = dpo(VOCABULARY, tokens="codes", beta=0.2)
    batch = batch_of(IMAGES)
    policy, reference = random_values(batch)

    metrics = objective.metrics(computed(objective, batch)[2])

    codes = (batch.labels >= VOCABULARY.first_code) & (batch.weights > 0)
    drift = (reference - policy).double()[codes].mean()
    assert metrics["kl/code"] == pytest.approx(float(drift), rel=1e-9)
    assert metrics["rewards/chosen/code"] == pytest.approx(metrics["rewards/chosen"])
    assert "kl/structure" in metrics
    assert "rewards/chosen/structure" not in metrics, "structure does not count"
    assert all(isinstance(value, float) for value in metrics.values())


@pytest.mark.parametrize(
    ("variant", "beta", "loss"),
    [("sigmoid", 0.1, 0.6931471805599453), ("ipo", 0.1, 25.0), ("hinge", 0.1, 1.0)],
)
def test_the_loss_of_equal_models(variant: str, beta: float, loss: float):
    assert loss_without_preference(variant, beta) == pytest.approx(loss, rel=1e-12)


def test_pairs_that_cannot_be_compared_are_refused():
    whole = pieces_of(pairs_of_images(2))
    other = pieces_of([drawing("a", torch.zeros(2, 2).long().numpy())] * 2)
    text = pieces_of([answer("why", "so"), answer("why", "no")])
    bare = [piece._replace(context=None) for piece in whole[:2]]
    mistakes = {
        "document 0 is not side by side with the others of its group of 2": [whole[0], whole[2]],
        "pairs: pair 0, documents 0 to 1, has two prompts": [whole[0], other[1]],
        "pairs: document 0 has no prompt": bare,
        "document 0 has no trained token of class code": text,
    }
    builder = RowBuilder(VOCABULARY, CONTEXT, dpo(VOCABULARY).weights, group=2)
    for line, pieces in mistakes.items():
        with pytest.raises(InputError, match=line):
            builder.batch([pieces])
