"""Sampling against transformers' logits processors."""

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from emu3_megatron.errors import InputError
from emu3_megatron.generation.sampling import SamplingSettings, distribution, guide, sample

NO_IDS = torch.empty(5, 0, dtype=torch.int64)


def random_logits(seed: int, columns: int = 300) -> torch.Tensor:
    return 4 * torch.randn(5, columns, generator=torch.Generator().manual_seed(seed))


def probabilities(logits_bv: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
    """Ours, back in the order of the columns."""
    probabilities_bk, columns_bk = distribution(logits_bv, settings)
    return torch.zeros_like(logits_bv).double().scatter(-1, columns_bk, probabilities_bk)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 20])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.01])
def test_distribution_is_that_of_transformers(temperature, top_k, top_p):
    logits_bv = random_logits(seed=0)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    expected = warpers(NO_IDS, logits_bv.double()).softmax(-1)

    ours = probabilities(
        logits_bv, SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p)
    )

    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 3.0, 0.5])
def test_guidance_on_the_allowed_columns_is_that_of_transformers_on_all(scale):
    logits_bv, negative_bv = random_logits(seed=1), random_logits(seed=2)
    allowed = torch.arange(100, 180)
    settings = SamplingSettings(top_k=20, temperature=0.9)
    guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor(scale, model=None)
    guidance.get_unconditional_logits = lambda ids: negative_bv[:, None]
    forbid_bv = torch.full_like(logits_bv, -torch.inf).index_fill(1, allowed, 0)
    # the whole vocabulary: log_softmax, guidance, constraint, then the rest
    whole_bv = guidance(NO_IDS, logits_bv) + forbid_bv
    warpers = LogitsProcessorList([TemperatureLogitsWarper(0.9), TopKLogitsWarper(20)])
    expected = warpers(NO_IDS, whole_bv).softmax(-1)

    ours = probabilities(guide(logits_bv[:, allowed], negative_bv[:, allowed], scale), settings)

    torch.testing.assert_close(ours.float(), expected[:, allowed], rtol=1e-4, atol=1e-7)


def test_temperature_0_takes_the_likeliest():
    logits_bv = random_logits(seed=3)

    drawn_b = sample(logits_bv, torch.rand(5).double(), SamplingSettings(temperature=0))

    assert torch.equal(drawn_b, logits_bv.argmax(-1))


def test_columns_are_drawn_as_often_as_they_are_likely():
    logits_v = torch.tensor([0.1, 0.6, 0.0, 0.3]).log()
    uniforms_b = (torch.arange(1000).double() + 0.5) / 1000

    drawn_b = sample(logits_v.expand(1000, -1), uniforms_b, SamplingSettings())

    assert drawn_b.bincount(minlength=4).tolist() == [100, 600, 0, 300]


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_something_likely(uniform):
    logits_bv = random_logits(seed=4)
    settings = SamplingSettings(top_p=0.5)

    drawn_b = sample(logits_bv, torch.full((5,), uniform, dtype=torch.float64), settings)

    assert (probabilities(logits_bv, settings).gather(1, drawn_b[:, None]) > 0).all()


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"guidance": -1},
        {"guidance": float("nan")},
        {"top_k": 0},
        {"top_p": 0},
        {"top_p": 1.1},
    ],
)
def test_settings_that_make_no_sense(field):
    with pytest.raises(InputError, match=next(iter(field))):
        SamplingSettings(**field)
