"""transformers' decoder under our inputs, beside our own; needs no DeepSpeed."""

from dataclasses import replace

import pytest
import torch
from support.batches import reader, setting_of
from support.tiny import VOCABULARY, make_packs, tiny_recipe

from emu3_megatron.data.batches import IGNORE
from emu3_megatron.data.mixed import MixtureData
from emu3_megatron.model import build_decoder
from emu3_megatron.training.engines.hub_decoder import HubDecoder
from emu3_megatron.training.engines.hub_weights import HubWeights
from emu3_megatron.training.placing import Placer

# Equal weights in fp32; the two differ in the order in which they add.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def both(mesh, tmp_path_factory):
    """Both decoders and a batch of packed documents."""
    folder = tmp_path_factory.mktemp("packs")
    recipe = tiny_recipe(make_packs(folder), folder / "run")
    data = MixtureData(recipe.data, setting_of(recipe))
    batch = next(iter(data.batches(reader(), 0, 1)))[0]
    inputs = Placer(recipe.model.vocabulary(), 0)(batch).inputs
    theirs = HubDecoder(recipe.model, "auto")
    parameters = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, tensor in HubWeights(recipe.model, torch.float32).drawn(7, mesh.device):
            parameters[name].copy_(tensor)
    return build_decoder(recipe.model, seed=7), theirs, inputs


def test_all_that_objectives_want_is_what_our_decoder_answers(both):
    ours, theirs, inputs = both

    torch.testing.assert_close(theirs(inputs, "logits"), ours(inputs, "logits"), **CLOSE)
    for want in ("sums", "log_probabilities"):
        for name, found in theirs(inputs, want)._asdict().items():
            expected = getattr(ours(inputs, want), name)
            torch.testing.assert_close(found, expected, **CLOSE, msg=f"{want}: {name}")


def test_a_softmax_over_text_alone_is_what_our_decoder_answers(both):
    ours, theirs, inputs = both
    labels_bs = inputs.labels_bs.masked_fill(inputs.labels_bs >= VOCABULARY.first_code, IGNORE)
    text = replace(inputs, labels_bs=labels_bs, kept=None)
    found, expected = (
        d(text, "sums", 0.1, candidates=VOCABULARY.first_code) for d in (theirs, ours)
    )

    torch.testing.assert_close(found.loss, expected.loss, **CLOSE)
    assert found.loss < ours(text, "sums", 0.1).loss  # fewer words to choose among


def test_documents_of_a_row_do_not_see_one_another(both):
    _, theirs, inputs = both
    second = int(inputs.starts[0][1])
    changed = inputs.tokens_bs.clone()
    changed[0, :second] = changed[0, :second].flip(0)
    before = theirs(inputs, "logits")[0]
    after = theirs(replace(inputs, tokens_bs=changed), "logits")[0]

    torch.testing.assert_close(after[second:], before[second:])
    assert not torch.allclose(after[:second], before[:second])
