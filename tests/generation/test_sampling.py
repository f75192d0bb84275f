"""Sampling against transformers' logits processors, and the noise that draws."""

import pytest
import torch
from scipy.stats import chisquare, kstest
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from emu3_megatron.errors import InputError
from emu3_megatron.generation.noise import gumbel, noise_key
from emu3_megatron.generation.sampling import Sampler, SamplingSettings, guide

NO_IDS = torch.empty(5, 0, dtype=torch.int64)


def random_logits(seed: int, columns: int = 300) -> torch.Tensor:
    return 4 * torch.randn(5, columns, generator=torch.Generator().manual_seed(seed))


def probabilities(logits_bv: torch.Tensor, *settings: SamplingSettings) -> torch.Tensor:
    """Ours, in the order of the columns; of one setting for all rows, or of one a row."""
    rows = settings if len(settings) > 1 else settings * len(logits_bv)
    scores_bk, columns_bk = Sampler(rows, logits_bv.device).scores(logits_bv)
    probabilities_bk = scores_bk.double().softmax(-1)
    if columns_bk is None:
        return probabilities_bk
    return torch.zeros_like(logits_bv).double().scatter(-1, columns_bk, probabilities_bk)


def keys(count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Of places 0, 1, 2 and so on."""
    return [noise_key(seed, place) for place in range(count)]


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


def test_each_row_has_its_own_settings():
    logits_bv = random_logits(seed=5)
    rows = [
        SamplingSettings(top_k=None),
        SamplingSettings(top_k=3, temperature=2),
        SamplingSettings(top_k=None, top_p=0.5),
        SamplingSettings(top_k=50, top_p=0.9),
        SamplingSettings(top_k=1),
    ]

    together = probabilities(logits_bv, *rows)

    for i, settings in enumerate(rows):
        alone = probabilities(logits_bv[i : i + 1], settings)
        torch.testing.assert_close(together[i : i + 1], alone)


def test_temperature_0_takes_the_likeliest_whatever_others_draw():
    logits_bv = random_logits(seed=3)
    rows = [SamplingSettings(temperature=t) for t in (0, 1, 0, 1, 0)]
    ids = torch.arange(1000, 1300)

    drawn_b = Sampler(rows, logits_bv.device).draw(logits_bv, ids, keys(5))

    assert torch.equal(drawn_b[::2], ids[logits_bv[::2].argmax(-1)])


def test_a_temperature_near_0_takes_the_likeliest():
    logits_bv = random_logits(seed=3)
    sampler = Sampler([SamplingSettings(temperature=1e-38)] * 5, logits_bv.device)

    assert torch.equal(sampler.draw(logits_bv, torch.arange(300), keys(5)), logits_bv.argmax(-1))


@pytest.mark.parametrize(
    "settings",
    [
        SamplingSettings(top_k=None),
        SamplingSettings(top_k=10, temperature=1.5),
        SamplingSettings(top_k=None, top_p=0.8, temperature=0.7),
    ],
    ids=["all", "top-k", "top-p"],
)
def test_tokens_are_drawn_as_often_as_they_are_likely(settings):
    logits_v = 1.5 * torch.randn(40, generator=torch.Generator().manual_seed(6))
    draws = 100_000
    expected_v = probabilities(logits_v[None], settings)[0]
    logits_bv = logits_v.expand(draws, -1)
    sampler = Sampler([settings] * draws, logits_v.device)

    drawn_b = sampler.draw(logits_bv, torch.arange(40), keys(draws))

    counts_v = drawn_b.bincount(minlength=40).double()
    likely = expected_v * draws >= 5
    assert counts_v[expected_v == 0].sum() == 0
    observed = [*counts_v[likely].tolist(), counts_v[~likely].sum().item()]
    hoped = [*(expected_v[likely] * draws).tolist(), (expected_v[~likely] * draws).sum().item()]
    observed, hoped = zip(
        *[pair for pair in zip(observed, hoped, strict=True) if pair[1]], strict=True
    )
    assert chisquare(observed, hoped).pvalue > 1e-3


def test_noise_is_gumbel_and_independent_over_seeds_places_and_tokens():
    noise_spv = torch.stack([gumbel(keys(50, seed), torch.arange(200)) for seed in range(20)])

    assert kstest(noise_spv.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    uniform_spv = (-(-noise_spv).exp()).exp()
    for one, other in (
        (uniform_spv[1:], uniform_spv[:-1]),
        (uniform_spv[:, 1:], uniform_spv[:, :-1]),
        (uniform_spv[..., 1:], uniform_spv[..., :-1]),
        (uniform_spv[:, 1:, :-1], uniform_spv[:, :-1, 1:]),
    ):
        pair = torch.stack([one.flatten(), other.flatten()])
        assert abs(pair.corrcoef()[0, 1]) < 4 / pair.shape[1] ** 0.5


def test_noise_of_a_token_does_not_depend_on_which_others_are_asked_for():
    whole_bv = gumbel(keys(3), torch.arange(100))
    some_bk = torch.tensor([[7, 99, 0]] * 3)

    assert torch.equal(gumbel(keys(3), some_bk), whole_bv.gather(1, some_bk))


def test_keys_differ_for_seeds_of_any_size_and_sign():
    seeds = [0, 1, -1, 2**31, 2**63, 2**64 - 2, 10**12]

    assert len({noise_key(seed, place) for seed in seeds for place in range(100)}) == 700


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
