"""FlexAttention's blocks, and gradients over all tiles from a kernel that knows its own alone."""

import pytest
import torch
from emu3_kernels.attention_tile import KeyRanges, Tile, attention_delta, flex, reference
from torch.nn.attention.flex_attention import AuxOutput, create_block_mask, flex_attention

QUERIES, KEYS = 300, 410
LAYOUTS = {
    "documents": [(0, 1, 0, 1, 1), (1, 128, 1, 128, 1), (128, 300, 128, 300, 1)],
    "gaps": [(20, 130, 25, 135, 1), (200, 300, 140, 400, 1)],
    "another rank's keys": [(0, 256, 0, 256, 0), (256, 300, 300, 410, 0)],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_blocks_are_those_that_torch_finds(layout):
    ranges = KeyRanges.of_segments(LAYOUTS[layout], QUERIES, KEYS)

    ours = flex.block_mask(ranges)

    torchs = create_block_mask(ours.mask_mod, None, None, QUERIES, KEYS, device="cpu")
    assert torch.equal(ours.to_dense(), torchs.to_dense())
    # Of queries past the end torch asks too, and calls their blocks partial.
    whole = QUERIES // flex.BLOCK
    counts = ours.full_kv_num_blocks[0, 0, :whole]
    assert torch.equal(counts, torchs.full_kv_num_blocks[0, 0, :whole])
    for row, count in enumerate(counts):
        listed = [mask.full_kv_indices[0, 0, row, :count].tolist() for mask in (ours, torchs)]
        assert listed[0] == listed[1]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_torchs_own_function_gives_out_and_natural_lse(layout, monkeypatch):
    """Not compiled it runs on CPUs, forward alone."""
    monkeypatch.setattr(flex, "_compiled", lambda: flex_attention)
    ranges = KeyRanges.of_segments(LAYOUTS[layout], QUERIES, KEYS)
    generator = torch.Generator().manual_seed(0)
    draw = lambda tokens, heads: torch.randn(tokens, heads, 16, generator=generator)
    q, k, v = draw(QUERIES, 4), draw(KEYS, 2), draw(KEYS, 2)
    tile = Tile(q, k, v, ranges, scale=0.3)

    found, expected = (backend.forward(tile, None) for backend in (flex, reference))

    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def plain_flex(q, k, v, *, block_mask, scale, enable_gqa, return_aux):
    """What flex_attention computes, for its mask_mod; it has no backward on CPUs."""
    query, key = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
    visible = block_mask.mask_mod(0, 0, query, key)
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = (q @ k.mT * scale).masked_fill(~visible, -torch.inf)
    lse = scores.logsumexp(-1)
    prob = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
    return prob @ v, AuxOutput(lse=lse)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_tiles_gradients_are_its_share_of_the_whole(layout, monkeypatch):
    monkeypatch.setattr(flex, "_compiled", lambda: plain_flex)
    ranges = KeyRanges.of_segments(LAYOUTS[layout], QUERIES, KEYS)
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    q, k, v, dout = (draw(t, h, 8) for t, h in ((300, 4), (410, 2), (410, 2), (300, 4)))
    earlier = draw(300, 4, 8), draw(4, 300)

    tile = Tile(q, k, v, ranges, scale=0.3)
    results = []
    for backend in (flex, reference):
        running = tuple(t.clone() for t in earlier)
        out, lse = backend.forward(tile, running)
        gradients = [torch.zeros_like(t) for t in (q, k, v)]
        delta = attention_delta(dout, out)
        backend.backward(tile, dout, delta, lse, gradients)
        results.append([out, lse, *gradients])

    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)
