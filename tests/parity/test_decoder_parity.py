"""Our decoder against transformers' Emu3ForCausalLM, on the same random weights."""

import numpy as np
import pytest
import torch
from emu3_kernels.linear_cross_entropy import IGNORE
from support.inputs import whole_rows
from support.transformers_decoder import (
    SMALL,
    VOCABULARY,
    from_transformers,
    our_decoder,
    transformers_decoder,
)
from transformers import Emu3ForCausalLM, GenerationConfig

from emu3_megatron.generation.generator import generate
from emu3_megatron.generation.jobs import Request
from emu3_megatron.generation.raster import Choice
from emu3_megatron.generation.sampling import SamplingSettings
from emu3_megatron.model import Decoder, build_decoder


@pytest.fixture(scope="module")
def theirs() -> Emu3ForCausalLM:
    return transformers_decoder()


@pytest.fixture(scope="module")
def ours(mesh, theirs) -> Decoder:
    return our_decoder(theirs)


def random_tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        VOCABULARY.first_code, VOCABULARY.size, (rows, length), generator=generator
    )


def logits_of(decoder: Decoder, tokens_bs: torch.Tensor) -> torch.Tensor:
    return decoder(whole_rows(tokens_bs), "logits")


def test_every_weight_has_its_counterpart(ours, theirs):
    parameters = {name: p.shape for name, p in ours.named_parameters()}
    converted = {name: t.shape for name, t in from_transformers(theirs.state_dict()).items()}
    assert converted == parameters


@torch.no_grad()
def test_logits_are_equal(ours, theirs):
    tokens_bs = random_tokens(3, 70)

    expected = theirs(tokens_bs).logits

    torch.testing.assert_close(logits_of(ours, tokens_bs), expected, rtol=0, atol=1e-5)


def test_gradients_of_the_mean_loss_are_equal(ours, theirs):
    tokens_bs = random_tokens(2, 40)
    theirs.zero_grad()
    theirs(tokens_bs, labels=tokens_bs).loss.backward()
    expected = from_transformers({name: p.grad for name, p in theirs.named_parameters()})

    ours.zero_grad()
    sums = ours(whole_rows(tokens_bs[:, :-1], labels_bs=tokens_bs[:, 1:]), "sums")
    (sums.loss / sums.weight).backward()

    for name, parameter in ours.named_parameters():
        largest = expected[name].abs().max().item()
        torch.testing.assert_close(
            parameter.grad, expected[name], rtol=0, atol=1e-5 * largest, msg=lambda m, n=name: n + m
        )


@torch.no_grad()
def test_packed_documents_are_blind_to_each_other(ours, theirs):
    documents = [random_tokens(1, length, seed=length) for length in (5, 31, 12)]
    alone = torch.cat([theirs(document).logits for document in documents], dim=1)

    packed = ours(whole_rows(torch.cat(documents, dim=1), [0, 5, 36, 48]), "logits")

    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)


@torch.no_grad()
def test_log_probabilities_are_those_of_the_logits(ours, theirs):
    tokens_bs = random_tokens(2, 40)
    labels_bs = tokens_bs.roll(-1, dims=1)
    labels_bs[:, -1] = IGNORE

    found = ours(whole_rows(tokens_bs, labels_bs=labels_bs), "log_probabilities")

    logits_bsv = theirs(tokens_bs).logits.double()
    expected_bs = logits_bsv.log_softmax(-1).gather(2, labels_bs.clamp(min=0)[..., None])[..., 0]
    expected_bs[:, -1] = 0
    torch.testing.assert_close(found.log_prob.double(), expected_bs, rtol=0, atol=1e-5)
    right_bs = logits_bsv.argmax(-1) == labels_bs
    assert torch.equal(found.correct, right_bs)
    entropy_bs = torch.distributions.Categorical(logits=logits_bsv).entropy()
    entropy_bs[:, -1] = 0
    torch.testing.assert_close(found.entropy.double(), entropy_bs, rtol=0, atol=1e-5)


def test_greedy_generation_is_equal(ours, theirs):
    prompt = np.append(VOCABULARY.bos, VOCABULARY.encode("A cat on"))
    text = Choice.TEXT.ids(VOCABULARY)
    settings = GenerationConfig(
        max_new_tokens=80,
        do_sample=False,
        # The grammar of text, in their words.
        suppress_tokens=np.setdiff1d(np.arange(VOCABULARY.size), text).tolist(),
        bos_token_id=VOCABULARY.bos,
        eos_token_id=VOCABULARY.eos,
        pad_token_id=VOCABULARY.pad,
    )
    expected = theirs.generate(torch.from_numpy(prompt).long()[None], generation_config=settings)

    request = Request(prompt, stop=(VOCABULARY.eos,))
    greedy = SamplingSettings(guidance=1, temperature=0)
    (said,) = generate(ours, VOCABULARY, [request], greedy, max_tokens=80)

    assert said.tolist() == expected[0, len(prompt) :].tolist()
    assert len(said) >= 64
    assert len(set(said.tolist())) > 20  # not the same few over and over


PLACES = ("embedding", "attention probabilities", "attention residual", "mlp residual")


def silence_dropout_except(place: str, decoder: Decoder) -> None:
    if place != "embedding":
        decoder.embedding.embedding_dropout.p = 0
    for layer in decoder.block.layers:
        if place != "attention probabilities":
            layer.self_attention.core_attention.dropout = 0
        # Both residuals share one rate: what a branch without output drops is not seen.
        if not place.endswith("residual"):
            layer.hidden_dropout = 0
        if place == "attention residual":
            layer.mlp.linear_fc2.weight.data.zero_()
        if place == "mlp residual":
            layer.self_attention.linear_proj.weight.data.zero_()


@torch.no_grad()
@pytest.mark.parametrize("place", PLACES)
def test_dropout_acts_where_emu3_has_it(mesh, place):
    decoder = build_decoder(SMALL.model_copy(update={"dropout": 0.1}))
    silence_dropout_except(place, decoder)
    tokens_bs = random_tokens(1, 20)

    without = logits_of(decoder.eval(), tokens_bs)
    assert not torch.equal(logits_of(decoder.train(), tokens_bs), without)


@torch.no_grad()
def test_dropout_acts_nowhere_else(mesh):
    decoder = build_decoder(SMALL.model_copy(update={"dropout": 0.1}))
    for place in PLACES:  # whatever one spares, another silences
        silence_dropout_except(place, decoder)
    tokens_bs = random_tokens(1, 20)

    without = logits_of(decoder.eval(), tokens_bs)
    assert torch.equal(logits_of(decoder.train(), tokens_bs), without)


@torch.no_grad()
def test_no_dropout_in_eval_mode(mesh):
    decoder = build_decoder(SMALL.model_copy(update={"dropout": 0.1})).eval()
    tokens_bs = random_tokens(1, 20)

    assert torch.equal(logits_of(decoder, tokens_bs), logits_of(decoder, tokens_bs))
