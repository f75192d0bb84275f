"""The share of values that each of the decoder's dropouts drops, and by what the others grow."""

import pytest
import torch

from emu3_megatron.config import ModelConfig
from emu3_megatron.model import Decoder, SequenceLayout, build_decoder
from emu3_megatron.model.attention import attend

P = 0.1
MODEL = ModelConfig(
    layers=2, hidden=128, heads=4, kv_heads=2, ffn=64, text="bytes", codes=64, dropout=P
)


@pytest.fixture(scope="module")
def decoder(mesh) -> Decoder:
    mesh.seed(0, 0)
    return build_decoder(MODEL).train()


def assert_a_share_is_dropped(values: torch.Tensor) -> None:
    """Zero with probability P, else 1 / (1 - P) times as large; within four deviations."""
    dropped = (values == 0).double()
    deviation = (P * (1 - P) / values.numel()) ** 0.5
    assert abs(dropped.mean().item() - P) < 4 * deviation
    kept = values[values != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - P)), rtol=0, atol=1e-4)


def test_of_the_embedding(decoder):
    assert_a_share_is_dropped(decoder.embedding.embedding_dropout(torch.ones(200, 2, 128)))


class Ones(torch.nn.Module):
    """In the place of a branch's last product, as Megatron's linear layers answer."""

    def forward(self, hidden):
        return torch.ones(*hidden.shape[:-1], 128), None


@pytest.mark.parametrize("branch", ["attention", "mlp"])
def test_of_the_residual_branches(mesh, branch):
    """Without the other branch, a layer adds dropout of ones to what it is given."""
    decoder = build_decoder(MODEL).train()
    layer = decoder.block.layers[1]
    ones, zeros = Ones(), torch.nn.Module()
    zeros.forward = lambda hidden: (torch.zeros(*hidden.shape[:-1], 128), None)
    layer.self_attention.linear_proj = ones if branch == "attention" else zeros
    layer.mlp.linear_fc2 = ones if branch == "mlp" else zeros
    residual = torch.full((200, 1, 128), 5.0)
    rotary = decoder._rotary(torch.arange(200)[None])

    added, _ = layer(
        residual,
        rotary_pos_emb=rotary,
        packed_seq_params=SequenceLayout.of_documents([[0, 200]]),
    )

    assert_a_share_is_dropped((added - residual).round(decimals=4))


def test_of_attention_probabilities():
    """Equal scores, and values that tell the keys apart: each output is a key's probability."""
    tokens, heads = 64, 4
    layout = SequenceLayout.of_documents([[0, tokens]])
    zeros_sbhd = torch.zeros(tokens, 1, heads, tokens)
    keys_sbhd = torch.eye(tokens)[:, None, None].expand(-1, 1, heads, -1).contiguous()

    out_shk = attend(zeros_sbhd, zeros_sbhd, keys_sbhd, layout, 1, dropout=P)
    probabilities = out_shk.view(tokens, heads, tokens)

    seen = torch.ones(tokens, tokens).tril().bool()[:, None].expand(-1, heads, -1)
    times = probabilities * torch.arange(1, tokens + 1)[:, None, None]  # of 1 / keys seen
    assert_a_share_is_dropped(times[seen].round(decimals=4))
    assert not probabilities[~seen].any()
