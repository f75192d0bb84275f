"""The decoder: its size, and initial weights that no layout changes."""

import pytest
import torch
from support.processes import run_processes
from support.tiny import VOCABULARY

from emu3_megatron import parallel
from emu3_megatron.config import ModelConfig
from emu3_megatron.config.training import ParallelConfig
from emu3_megatron.model import build_decoder, count_parameters

SMALL = ModelConfig(
    layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, text="bytes", codes=VOCABULARY.num_codes
)
EMBEDDING, HEAD = "embedding.word_embeddings.weight", "head.weight"


def test_emu3_8b_has_the_published_number_of_parameters(mesh):
    assert count_parameters(ModelConfig.model_validate({"preset": "emu3-8b"})) == 8_492_011_520


def test_emu3_mini_is_mostly_embedding_and_head(mesh):
    model = ModelConfig.model_validate({"preset": "emu3-mini"})

    total, rows = count_parameters(model), 2 * model.vocabulary().size * model.hidden

    assert total == pytest.approx(230e6, rel=0.01)
    assert rows == pytest.approx(189e6, rel=0.01)


def test_counting_leaves_out_padding_rows(mesh):
    attention = 32 * 8 * (4 + 2 * 2) + 32 * 32
    layer = attention + 3 * 32 * 48 + 2 * 32

    assert count_parameters(SMALL) == 2 * layer + 32 + 2 * VOCABULARY.size * 32


@pytest.fixture(scope="module")
def weights(mesh):
    return dict(build_decoder(SMALL, seed=0).named_parameters())


def test_matrices_have_a_deviation_of_one_fiftieth(weights):
    for name, weight in weights.items():
        if weight.dim() == 2 and name not in (EMBEDDING, HEAD):
            assert weight.std().item() == pytest.approx(0.02, rel=0.06), name
            assert abs(weight.mean().item()) < 0.002, name


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_rows_of_the_vocabulary_are_drawn_and_padding_is_zero(weights, name):
    rows = weights[name]

    assert rows[: VOCABULARY.size].std().item() == pytest.approx(0.02, rel=0.02)
    assert len(rows) == 1152
    assert rows[VOCABULARY.size :].abs().max() == 0


def test_padding_has_an_embedding_of_zero(weights):
    assert weights[EMBEDDING][VOCABULARY.pad].abs().max() == 0
    assert weights[HEAD][VOCABULARY.pad].abs().max() > 0


def test_norms_begin_at_one(weights):
    norms = [weight for weight in weights.values() if weight.dim() == 1]

    assert len(norms) == 5
    assert all(torch.equal(norm, torch.ones_like(norm)) for norm in norms)


def test_two_matrices_of_one_shape_differ(weights):
    names = [f"block.layers.{i}.mlp.linear_fc2.weight" for i in (0, 1)]

    assert not torch.equal(weights[names[0]], weights[names[1]])


def test_the_seed_decides(mesh, weights):
    first, same, other = (
        dict(build_decoder(SMALL, seed=seed).named_parameters())[HEAD] for seed in (0, 0, 1)
    )

    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def shares_of(tensor):
    """This rank's weights, with the dimension and stride by which they were cut."""
    parallel.start(tensor=tensor).seed(1, 0)
    decoder = build_decoder(SMALL, ParallelConfig(tensor=tensor), seed=0)
    shares = {
        name: (
            weight.detach().numpy(),
            getattr(weight, "partition_dim", -1),
            getattr(weight, "partition_stride", 1),
        )
        for name, weight in decoder.named_parameters()
    }
    parallel.stop()
    return shares


def gathered(shares):
    """The whole of one weight, from each rank's share in order."""
    pieces = [torch.from_numpy(share) for share, _, _ in shares]
    _, dim, stride = shares[0]
    if dim < 0:
        assert all(torch.equal(piece, pieces[0]) for piece in pieces)
        return pieces[0]
    # A stride of 2: each rank holds a part of the gate, then a part of the up projection.
    parts = [piece.chunk(stride, dim) for piece in pieces]
    return torch.cat([rank[i] for i in range(stride) for rank in parts], dim)


def test_tensor_parallel_ranks_hold_shares_of_the_same_weights(weights):
    ranks = run_processes(shares_of, 2, 2)

    assert ranks[0].keys() == weights.keys()
    for name, whole in weights.items():
        found = gathered([rank[name] for rank in ranks])
        rows = VOCABULARY.size if name in (EMBEDDING, HEAD) else len(whole)
        assert torch.equal(found[:rows], whole[:rows]), name
        assert found[rows:].abs().sum() == 0, name
