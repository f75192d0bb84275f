"""Weight gradients that Megatron's linear layers add to its buffers in the product itself."""

import pytest
import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from support.inputs import whole_rows

from emu3_megatron.config import ModelConfig
from emu3_megatron.model import build_decoder

MODEL = ModelConfig(
    layers=1, hidden=32, heads=4, kv_heads=2, ffn=48, text="bytes", codes=64, dropout=0.0
)


def gradients(bf16: bool, into_main_grad: bool) -> dict[str, torch.Tensor]:
    """The buffers of the layer's matrices after two micro-batches."""
    decoder = build_decoder(MODEL, bf16=bf16, into_main_grad=into_main_grad).train()
    settings = DistributedDataParallelConfig(grad_reduce_in_fp32=True, overlap_grad_reduce=True)
    model = DistributedDataParallel(decoder.config, settings, decoder)
    model.zero_grad_buffer()
    with model.no_sync():
        for first in (0, 50):
            hidden = model(whole_rows(first + torch.arange(24)[None]), "hidden").float()
            (hidden * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    return {n: w.main_grad.clone() for n, w in decoder.named_parameters() if "linear" in n}


@pytest.mark.parametrize("bf16", [False, True])
def test_as_autograd_would_have_added_them(mesh, bf16):
    found, wanted = gradients(bf16, True), gradients(bf16, False)
    assert found.keys() == wanted.keys()
    assert len(found) == 4
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-5)


def test_autograd_is_told_that_nothing_is_left_to_add(mesh):
    decoder = build_decoder(MODEL, into_main_grad=True).train()
    settings = DistributedDataParallelConfig(grad_reduce_in_fp32=True)
    model = DistributedDataParallel(decoder.config, settings, decoder)
    model(whole_rows(torch.arange(24)[None]), "hidden").sum().backward()
    weight = decoder.block.layers[0].mlp.linear_fc1.weight
    assert weight.grad_added_to_main_grad
    assert weight.main_grad.abs().sum() > 0
