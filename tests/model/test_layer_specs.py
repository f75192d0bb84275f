"""Layer specs by backend: other classes, the same tensors under the same names."""

import pytest
import torch
from megatron.core.extensions import transformer_engine as extension
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from support.inputs import whole_rows
from support.tiny import VOCABULARY

from emu3_megatron.config import ModelConfig
from emu3_megatron.config.training import BackendConfig, ParallelConfig
from emu3_megatron.errors import InputError
from emu3_megatron.model import build_decoder
from emu3_megatron.model.decoder import view_for_inference
from emu3_megatron.model.norm import RMSNorm
from emu3_megatron.model.opening import sharded_weights
from emu3_megatron.model.tensors import named_tensors

SMALL = ModelConfig(
    layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, text="bytes", codes=VOCABULARY.num_codes
)


class NormAndLinear(ColumnParallelLinear):
    """Megatron's TELayerNormColumnParallelLinear by its contract: a norm fused in front."""

    def __init__(self, input_size, output_size, *, config, **settings):
        super().__init__(input_size, output_size, config=config, **settings)
        norm = RMSNorm(config, input_size, config.layernorm_epsilon)
        self.layer_norm_weight = norm.weight
        self._norm = [norm]  # in a list: no submodule, the weight is this module's

    def forward(self, hidden, *arguments, **settings):
        return super().forward(self._norm[0](hidden), *arguments, **settings)


@pytest.fixture
def fused(monkeypatch):
    monkeypatch.setattr(extension, "HAVE_TE", True)
    monkeypatch.setattr(extension, "TELayerNormColumnParallelLinear", NormAndLinear)
    monkeypatch.setattr(extension, "TERowParallelLinear", RowParallelLinear)
    return build_decoder(SMALL, backend=BackendConfig(layers="transformer_engine")).eval()


@pytest.fixture
def native(mesh):
    return build_decoder(SMALL).eval()


def test_initial_weights_are_the_same_by_name(mesh, fused, native):
    other = dict(named_tensors(native))
    assert dict(fused.named_parameters()).keys() != other.keys()
    for name, tensor in named_tensors(fused):
        assert torch.equal(tensor, other.pop(name)), name
    assert other == {}


@torch.no_grad()
def test_logits_are_the_same(mesh, fused, native):
    inputs = whole_rows(torch.arange(24)[None] * 40)

    assert torch.equal(fused(inputs, "logits"), native(inputs, "logits"))


def test_checkpoints_name_tensors_alike(mesh, fused, native):
    keys = lambda decoder: {
        part.key
        for name, part in sharded_weights(decoder).items()
        if not name.endswith("_extra_state")
    }

    assert keys(fused) == keys(native)


@torch.no_grad()
def test_an_engines_view_shares_the_weights_of_every_backend(mesh, fused):
    backend = BackendConfig(layers="transformer_engine")
    view = view_for_inference(fused, SMALL, ParallelConfig(), backend)
    inputs = whole_rows(torch.arange(24)[None] * 40)

    for (name, one), other in zip(view.named_parameters(), fused.parameters(), strict=True):
        assert one is other, name
    assert torch.equal(view(inputs, "logits"), fused(inputs, "logits"))


def test_a_machine_without_transformer_engine_is_told_so(mesh, monkeypatch):
    monkeypatch.setattr(extension, "HAVE_TE", False)
    with pytest.raises(InputError, match=r"install it, or set backend\.layers=native"):
        build_decoder(SMALL, backend=BackendConfig(layers="transformer_engine"))


def test_the_recipes_attention_is_what_layers_call(mesh):
    decoder = build_decoder(SMALL, backend=BackendConfig(attention="flash4")).eval()

    with pytest.raises(ValueError, match="backend flash4: runs on GPUs, not on cpu"):
        decoder(whole_rows(torch.arange(24)[None] * 40), "logits")
