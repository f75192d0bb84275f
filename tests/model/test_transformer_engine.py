"""TransformerEngine's attention: chosen by the recipe, or refused in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from emu3_kernels.exchange import GroupExchange, NoExchange
from megatron.core import parallel_state
from megatron.core.extensions import transformer_engine as extension
from megatron.core.transformer.enums import AttnMaskType
from pydantic import ValidationError
from support.processes import run_processes
from support.tiny import VOCABULARY, tiny_recipe
from torch.nn.functional import scaled_dot_product_attention

from emu3_megatron import parallel
from emu3_megatron.config import ModelConfig
from emu3_megatron.config.training import BackendConfig, ParallelConfig
from emu3_megatron.context_parallel.dispatch import dispatch
from emu3_megatron.errors import InputError
from emu3_megatron.model import SequenceLayout, build_decoder
from emu3_megatron.model.attention import DocumentAttention

SMALL = ModelConfig(
    layers=1, hidden=32, heads=4, kv_heads=2, ffn=48, text="bytes", codes=VOCABULARY.num_codes
)
WHOLE_ROWS = {"context": 128, "sources": [{"pack": "a.pack"}], "reset_at_documents": False}


class StandIn(torch.nn.Module):
    """Megatron's TEDotProductAttention by its contract: a rank holds a chunk and its mirror."""

    def __init__(self, config, layer_number, attn_mask_type, attention_type, **ignored):
        super().__init__()
        self.group = parallel_state.get_context_parallel_group()
        assert attn_mask_type is AttnMaskType.causal

    def forward(
        self, query, key, value, attention_mask, attn_mask_type, attention_bias, packed_seq_params
    ):
        assert (attn_mask_type, packed_seq_params.qkv_format) == (AttnMaskType.causal, "sbhd")
        rank, size = torch.distributed.get_rank(self.group), self.group.size()
        places = torch.arange(size * len(query)).view(2 * size, -1)
        held = [places[[rank, 2 * size - 1 - rank]].flatten() for rank in range(size)]
        key, value = (self._whole(tensor, held) for tensor in (key, value))
        visible = held[rank][:, None] >= torch.arange(len(key))
        by_head = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        out = scaled_dot_product_attention(*by_head, attn_mask=visible, enable_gqa=True)
        return out.permute(2, 0, 1, 3).flatten(2)

    def _whole(self, mine, held):
        parts = [torch.empty_like(mine, memory_format=torch.contiguous_format) for _ in held]
        torch.distributed.all_gather(parts, mine.contiguous(), group=self.group)
        return torch.cat(parts)[torch.cat(held).argsort()]


def hidden_states(context):
    """This rank's hidden states of a row that is one document, by our attention and by theirs."""
    extension.HAVE_TE, extension.TEDotProductAttention = True, StandIn
    mesh = parallel.start(context=context)
    mesh.seed(0, 0)
    order_cs = torch.from_numpy(dispatch(np.array([0, 128]), context))
    mine_bs = order_cs[mesh.context_rank][None]
    tokens_s = torch.arange(128) % VOCABULARY.size
    exchange = NoExchange()
    if context > 1:
        group = parallel_state.get_context_parallel_group()
        exchange = GroupExchange(group, point_to_point=True)
    layout = SequenceLayout.of_documents([[0, 128]], order_cs[None], exchange)
    found = []
    for attention in ("auto", "transformer_engine"):
        decoder = build_decoder(
            SMALL, ParallelConfig(context=context), backend=BackendConfig(attention=attention)
        ).eval()
        kind = type(decoder.block.layers[0].self_attention.core_attention)
        assert kind is (StandIn if attention == "transformer_engine" else DocumentAttention)
        with torch.no_grad():
            found.append(decoder.hidden(tokens_s[mine_bs], mine_bs, layout).numpy())
    parallel.stop()
    return found


@pytest.mark.parametrize("context", [1, 2])
def test_it_computes_what_ours_does(context):
    for ours, theirs in run_processes(hidden_states, context, context):
        np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5)


def test_a_machine_without_it_is_told_so(mesh, monkeypatch):
    monkeypatch.setattr(extension, "HAVE_TE", False)
    with pytest.raises(InputError, match="TransformerEngine does not import here; install it, or"):
        build_decoder(SMALL, backend=BackendConfig(attention="transformer_engine"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reset_at_documents": True}, "set data.reset_at_documents=false"),
        ({"context": 130}, "multiple of 2 x parallel.context=4, not 130"),
    ],
)
def test_rows_that_it_would_have_to_pad_are_refused(changes, message):
    sections = {"parallel": {"context": 2}, "backend": {"attention": "transformer_engine"}}
    tiny_recipe(Path("a.pack"), Path("run"), **sections, data=WHOLE_ROWS)
    with pytest.raises(ValidationError, match=message):
        tiny_recipe(Path("a.pack"), Path("run"), **sections, data=WHOLE_ROWS | changes)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8, 16])
def test_a_row_that_is_one_document_is_dispatched_as_it_expects(ranks):
    """It takes for granted that a rank holds a chunk from the front and its mirror."""
    shortest = 2 * ranks
    for context in (*range(shortest, 60 * shortest, shortest), 5_280, 36_960, 33_696, 131_136):
        order = torch.from_numpy(dispatch(np.array([0, context]), ranks))
        chunks = torch.arange(context).view(2 * ranks, -1)
        mirrored = torch.cat([chunks[:ranks], chunks[ranks:].flip(0)], dim=1)
        assert torch.equal(order, mirrored), context
