"""TransformerEngine's attention is refused in one line where it cannot serve."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.tiny import VOCABULARY, tiny_recipe

from emu3_megatron.config import ModelConfig
from emu3_megatron.config.schema import ParallelConfig
from emu3_megatron.errors import InputError
from emu3_megatron.model import build_decoder
from emu3_megatron.parallel.dispatch import dispatch

SMALL = ModelConfig(
    layers=1, hidden=32, heads=4, kv_heads=2, ffn=48, text="bytes", codes=VOCABULARY.num_codes
)
WHOLE_ROWS = {"context": 128, "sources": [{"pack": "a.pack"}], "reset_at_documents": False}


def test_a_machine_without_it_is_told_so(mesh, monkeypatch):
    monkeypatch.setattr("emu3_megatron.model.decoder.find_spec", lambda name: None)
    with pytest.raises(InputError, match="TransformerEngine is not installed; install it, or set"):
        build_decoder(SMALL, ParallelConfig(attention="transformer_engine"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reset_at_documents": True}, "set data.reset_at_documents=false"),
        ({"context": 130}, "multiple of 2 x parallel.context=4, not 130"),
    ],
)
def test_rows_that_it_would_have_to_pad_are_refused(changes, message):
    parallel = {"context": 2, "attention": "transformer_engine"}
    tiny_recipe(Path("a.pack"), Path("run"), parallel=parallel, data=WHOLE_ROWS)
    with pytest.raises(ValidationError, match=message):
        tiny_recipe(Path("a.pack"), Path("run"), parallel=parallel, data=WHOLE_ROWS | changes)


@pytest.mark.parametrize("context", [128, 704, 5_120, 131_072])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_row_that_is_one_document_is_dispatched_as_it_expects(context, ranks):
    """It takes for granted that a rank holds a chunk from the front and its mirror."""
    order = torch.from_numpy(dispatch(np.array([0, context]), ranks))
    chunks = torch.arange(context).view(2 * ranks, -1)
    assert torch.equal(order, torch.cat([chunks[:ranks], chunks[ranks:].flip(0)], dim=1))
