"""The head's gradient in Megatron's buffer, what its hooks are told of it, and backends."""

from dataclasses import replace

import pytest
import torch
from emu3_kernels.linear_cross_entropy import IGNORE
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from support.inputs import whole_rows
from support.tiny import VOCABULARY

from emu3_megatron.config import ModelConfig
from emu3_megatron.config.training import BackendConfig
from emu3_megatron.errors import InputError
from emu3_megatron.model import Inputs, SequenceLayout, build_decoder
from emu3_megatron.model.decoder import empty_decoder

MODEL = ModelConfig(
    layers=1, hidden=32, heads=4, kv_heads=2, ffn=48, text="bytes", codes=VOCABULARY.num_codes
)
TOKENS = 24


@pytest.fixture
def model(mesh):
    """A decoder with gradient buffers that are reduced while the backward pass goes on."""
    decoder = build_decoder(MODEL)
    settings = DistributedDataParallelConfig(grad_reduce_in_fp32=True, overlap_grad_reduce=True)
    model = DistributedDataParallel(decoder.config, settings, decoder)
    model.zero_grad_buffer()
    return model


@pytest.fixture
def hidden_sbh():
    return torch.randn(TOKENS, 1, MODEL.hidden, generator=torch.Generator().manual_seed(0))


def loss(model, hidden_sbh, backend="auto"):
    model.module.head.loss_backend = backend
    labels_bs = torch.arange(TOKENS)[None] * 40
    weights_bs = torch.tensor([1.0, 0.5, 0.0, 2.0]).repeat(TOKENS // 4)[None]
    inputs = Inputs(labels_bs, labels_bs, SequenceLayout(), labels_bs, weights_bs, labels_bs % 3)
    return model.module.head(hidden_sbh, inputs, "sums", 1e-3).loss


def main_grad(model, hidden_sbh, backend):
    """The head's, after two micro-batches under different scales."""
    model.zero_grad_buffer()
    with model.no_sync():
        for scale in (2.0, 0.25):
            (scale * loss(model, hidden_sbh, backend)).backward()
    return model.module.head.weight.main_grad.clone()


def test_megatrons_buffer_holds_what_autograd_would_have_put_there(model, hidden_sbh):
    unfused = main_grad(model, hidden_sbh, "unfused")
    assert not model.module.head.weight.grad_added_to_main_grad

    fused = main_grad(model, hidden_sbh, "auto")

    assert model.module.head.weight.grad_added_to_main_grad
    assert model.module.head.weight.grad is None
    assert unfused.abs().max() > 0.1
    torch.testing.assert_close(fused, unfused, rtol=1e-5, atol=1e-6)


def test_the_buffers_hook_learns_that_the_gradient_is_there(model, hidden_sbh, monkeypatch):
    weight, ready = model.module.head.weight, []
    group = model.param_to_bucket_group[weight]
    note = lambda parameter, *_: ready.append((parameter is weight, weight.main_grad.any().item()))
    monkeypatch.setattr(group, "register_grad_ready", note)

    loss(model, hidden_sbh).backward()

    assert ready == [(True, True)]


def test_a_loss_that_nobody_follows_back_leaves_no_trace(model, hidden_sbh):
    head = model.module.head
    with torch.no_grad():
        loss(model, hidden_sbh)
    loss(model, hidden_sbh)
    assert not head.weight.grad_added_to_main_grad

    with model.no_sync():
        head(hidden_sbh, None, "logits").sum().backward()

    expected = hidden_sbh.sum((0, 1)).expand(VOCABULARY.size, -1)
    torch.testing.assert_close(head.weight.main_grad[: VOCABULARY.size], expected)


@pytest.mark.parametrize("together", [False, True], ids=["in two micro-batches", "in one"])
@pytest.mark.parametrize("want", ["log_probabilities", "logits"])
def test_one_step_may_want_several_things_of_the_head(model, hidden_sbh, want, together):
    """The fused loss fills the buffer by itself, the others through autograd: none may be lost."""
    head = model.module.head
    labels_bs = torch.arange(TOKENS)[None]
    inputs = whole_rows(labels_bs, labels_bs=labels_bs)

    def gradient(backend):
        model.zero_grad_buffer()
        first = loss(model, hidden_sbh, backend)
        found = head(hidden_sbh, inputs, want)
        second = (found[0] if want == "log_probabilities" else found.square()).sum()
        with model.no_sync():
            for part in [first + second] if together else [first, second]:
                part.backward()
        return head.weight.main_grad.clone()

    torch.testing.assert_close(gradient("auto"), gradient("unfused"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("want", ["log_probabilities", "sums"])
def test_kept_tokens_from_the_host_are_those_the_device_would_find(model, want):
    hidden_sbh = torch.randn(TOKENS, 2, MODEL.hidden, generator=torch.Generator().manual_seed(0))
    labels_bs = torch.arange(2 * TOKENS).view(2, TOKENS)
    labels_bs[0, 3:] = labels_bs[1, ::2] = IGNORE
    inputs = whole_rows(labels_bs.clamp(min=0), labels_bs=labels_bs)
    kept = (labels_bs.T.flatten() != IGNORE).nonzero()[:, 0]

    found = model.module.head(hidden_sbh, replace(inputs, kept=kept), want)

    wanted = model.module.head(hidden_sbh, inputs, want)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    if want == "log_probabilities":
        assert torch.equal(found.entropy != 0, labels_bs != IGNORE)


def test_hooks_around_the_head_run_for_everything_that_is_wanted(model, hidden_sbh):
    """Megatron gathers weights in such hooks."""
    calls = []
    model.module.head.register_forward_pre_hook(lambda *_: calls.append(True))
    labels_bs = torch.arange(TOKENS)[None]
    inputs = whole_rows(labels_bs, labels_bs=labels_bs)

    for want in ("sums", "log_probabilities", "logits"):
        model(inputs, want)

    assert len(calls) == 3


def test_a_backend_that_cannot_serve_is_refused_before_the_first_step(mesh):
    message = r"backend.loss: backend cuda: .* on cpu; .* backend.loss=auto"
    with pytest.raises(InputError, match=message):
        build_decoder(MODEL, backend=BackendConfig(loss="cuda"))


def test_a_decoder_without_data_may_have_any_backend(mesh):
    """On a GPU the view of the live weights is made so, with the recipe's own backend."""
    empty_decoder(MODEL, backend=BackendConfig(loss="cuda"))
