"""Our decoder layer: with Triton's kernels, and with parts computed again."""

from support import triton_interpreter  # noqa: F401

# isort: split
import pytest
import torch
from emu3_kernels import layer_elementwise
from emu3_kernels.layer_elementwise.backends import choose
from support.inputs import whole_rows

from emu3_megatron.config import ModelConfig
from emu3_megatron.model import Decoder, build_decoder
from emu3_megatron.model.attention import DocumentAttention

pytest.importorskip("triton")

MODEL = ModelConfig(
    layers=2, hidden=48, heads=6, kv_heads=2, ffn=40, text="bytes", codes=64, dropout=0.0
)
DROPS = MODEL.model_copy(update={"dropout": 0.2})


def hidden_and_gradients(decoder: Decoder) -> list[torch.Tensor]:
    """Hidden states of two rows, and the gradient of every weight."""
    torch.manual_seed(1)
    hidden = decoder(whole_rows(torch.arange(26).view(2, 13) * 7), "hidden")
    (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    weights = [weight for name, weight in decoder.named_parameters() if name != "head.weight"]
    return [hidden.detach(), *(weight.grad for weight in weights)]


@pytest.fixture
def by_triton(monkeypatch):
    monkeypatch.setattr(layer_elementwise, "choose", lambda backend, x: choose("triton", x))


def test_with_tritons_kernels_as_with_torch(mesh, by_triton, monkeypatch):
    found = hidden_and_gradients(build_decoder(MODEL).train())
    monkeypatch.undo()
    wanted = hidden_and_gradients(build_decoder(MODEL).train())
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


MODES = ["selective", "full", ["norms"], ["activation"], ["attention"]]


@pytest.mark.parametrize("recompute", MODES, ids=str)
def test_computing_again_changes_no_bit(mesh, recompute):
    found = hidden_and_gradients(build_decoder(DROPS, recompute=recompute).train())
    wanted = hidden_and_gradients(build_decoder(DROPS).train())
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


def test_tritons_kernels_compute_the_same_again(mesh, by_triton):
    found = hidden_and_gradients(build_decoder(DROPS, recompute="selective").train())
    wanted = hidden_and_gradients(build_decoder(DROPS).train())
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("recompute", "forwards"), [("none", 1), ("selective", 1), (["attention"], 2), ("full", 2)]
)
def test_attention_is_computed_again_only_when_asked(mesh, monkeypatch, recompute, forwards):
    calls = []
    forward = DocumentAttention.forward
    monkeypatch.setattr(
        DocumentAttention,
        "forward",
        lambda self, *args, **kwargs: calls.append(self) or forward(self, *args, **kwargs),
    )
    hidden_and_gradients(build_decoder(MODEL, recompute=recompute).train())
    assert len(calls) == forwards * MODEL.layers


def test_a_decoder_that_records_nothing_frees_nothing(mesh):
    decoder = build_decoder(MODEL, recompute="selective").train()
    inputs = whole_rows(torch.arange(13)[None])
    with torch.no_grad():
        plain = decoder(inputs, "hidden")
    assert torch.equal(decoder(inputs, "hidden").detach(), plain)
