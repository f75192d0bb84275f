"""Loss terms of pixels and codebook: per sample, and with the gradient on the right side."""

import pytest
import torch

from emu3_megatron.tokenizer_training.losses.terms import TERMS, Reconstruction
from emu3_megatron.vision.quantizer import VectorQuantizer

TWO_BY_THREE = (2, 3, 4, 4)


def random_result(dtype=torch.float64, grad=True):
    """Two images, every tensor of them with a gradient."""
    generator = torch.Generator().manual_seed(0)
    pixels, rebuilt = torch.randn(2, *TWO_BY_THREE, generator=generator, dtype=dtype)
    latents, vectors = torch.randn(2, 2, 4, 1, 2, 2, generator=generator, dtype=dtype)
    for tensor in (rebuilt, latents, vectors):
        tensor.requires_grad_(grad)
    return Reconstruction(pixels, rebuilt, latents, vectors)


BY_HAND = {
    "l2": lambda r: ((r.pixels - r.rebuilt) ** 2).sum((1, 2, 3)) / 48,
    "l1": lambda r: (r.pixels - r.rebuilt).abs().sum((1, 2, 3)) / 48,
    "codebook": lambda r: ((r.latents - r.vectors) ** 2).sum((1, 2, 3, 4)) / 16,
    "commitment": lambda r: ((r.latents - r.vectors) ** 2).sum((1, 2, 3, 4)) / 16,
}
TRAINED = {"l2": "rebuilt", "l1": "rebuilt", "codebook": "vectors", "commitment": "latents"}


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_the_mean_of_each_sample(name):
    result = random_result()

    torch.testing.assert_close(TERMS[name](result), BY_HAND[name](result))


@pytest.mark.parametrize("name", TERMS)
def test_gradient_is_that_of_finite_differences(name):
    fields = dict(vars(random_result(grad=False)))
    trained = fields.pop(TRAINED[name])
    term = lambda x: TERMS[name](Reconstruction(**fields, **{TRAINED[name]: x}))

    assert torch.autograd.gradcheck(term, trained.requires_grad_())


@pytest.mark.parametrize("name", TERMS)
def test_bug_18_each_term_trains_its_own_side_alone(name):
    """beta weighs `commitment`: the term that moves latents, and nothing else."""
    result = random_result()

    TERMS[name](result).sum().backward()

    trained = {field for field in TRAINED.values() if getattr(result, field).grad is not None}
    assert trained == {TRAINED[name]}


def test_bug_17_the_codebook_term_reaches_the_codebook():
    """On the straight-through sum it would not, and would fall all the same."""
    generator = torch.Generator().manual_seed(0)
    quantizer = VectorQuantizer(5, 4)
    torch.nn.init.normal_(quantizer.embedding.weight, generator=generator)
    latents = torch.randn(2, 4, 1, 3, 3, generator=generator, requires_grad=True)
    codes = quantizer.nearest(latents)
    vectors = quantizer.lookup(codes)

    TERMS["codebook"](Reconstruction(latents, latents, latents, vectors)).sum().backward()

    by_hand = torch.zeros(5, 4)
    for sample, frame, row, column in torch.cartesian_prod(*map(torch.arange, codes.shape)):
        code = codes[sample, frame, row, column]
        latent = latents[sample, :, frame, row, column].detach()
        by_hand[code] += 2 * (quantizer.embedding.weight[code].detach() - latent) / 36
    torch.testing.assert_close(quantizer.embedding.weight.grad, by_hand)


@pytest.mark.parametrize("name", TERMS)
def test_groups_of_any_size_give_the_same_values(name):
    result = random_result()
    alone = [
        TERMS[name](Reconstruction(**{key: x[i : i + 1] for key, x in vars(result).items()}))
        for i in range(2)
    ]

    torch.testing.assert_close(TERMS[name](result), torch.cat(alone))


@pytest.mark.parametrize("name", TERMS)
def test_terms_are_fp32_whatever_the_networks_run_in(name):
    result = random_result(torch.bfloat16)

    with torch.autocast("cpu", torch.bfloat16):
        assert TERMS[name](result).dtype == torch.float32
