"""A pack of 131,072 tokens through a decoder on two processes, in little memory."""

import resource

import pytest
import torch
from emu3_kernels.exchange import GroupExchange
from megatron.core import parallel_state
from support.processes import run_processes
from support.tiny import VOCABULARY

from emu3_megatron import parallel
from emu3_megatron.config import ModelConfig
from emu3_megatron.config.training import ParallelConfig
from emu3_megatron.context_parallel.dispatch import dispatch
from emu3_megatron.model import SequenceLayout, Targets, build_decoder

CONTEXT = 131_072
MODEL = ModelConfig(
    layers=1,
    hidden=32,
    heads=2,
    kv_heads=1,
    ffn=64,
    text="bytes",
    codes=VOCABULARY.num_codes,
    dropout=0.0,  # a CPU's fast kernel has none
)
# Two clips, images, pages, and a tail of padding.
LENGTHS = [16_384, 4_256, 4_256, 900, 1, 16_384, *[4_256] * 18, *[300] * 30, 1]
BOUNDARIES = torch.tensor([0, *LENGTHS, CONTEXT - sum(LENGTHS)]).cumsum(0)


def forward_and_backward() -> tuple[float, float, float]:
    """This rank's mean loss, its gradient's norm, and by how many bytes its peak memory grew."""
    before = peak_memory()
    mesh = parallel.start(context=2)
    mesh.seed(0, 0)
    decoder = build_decoder(MODEL, ParallelConfig(context=2))
    order_cs = torch.from_numpy(dispatch(BOUNDARIES.numpy(), 2))
    exchange = GroupExchange(parallel_state.get_context_parallel_group(), point_to_point=True)
    take = lambda field_s: field_s[order_cs[mesh.context_rank]][None]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY.size, (CONTEXT,), generator=generator)
    positions = torch.arange(CONTEXT) - BOUNDARIES[:-1].repeat_interleave(BOUNDARIES.diff())
    labels_bs = take(tokens.roll(-1))
    sums = decoder(
        tokens_bs=take(tokens),
        positions_bs=take(positions),
        layout=SequenceLayout.of_documents([BOUNDARIES], order_cs[None], exchange),
        targets=Targets(labels_bs, torch.ones(labels_bs.shape), VOCABULARY.token_class(labels_bs)),
    )
    (sums.loss / sums.weight).backward()
    gradients = [weight.grad.norm() for weight in decoder.parameters()]
    parallel.stop()
    loss = float(sums.loss.detach() / sums.weight)
    return loss, float(torch.stack(gradients).norm()), peak_memory() - before


def peak_memory() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_131072_tokens_in_little_memory() -> None:
    """The mask of all queries and keys of one rank alone would take 8.6 GB."""
    for loss, gradient, memory in run_processes(forward_and_backward, 2):
        assert loss == pytest.approx(torch.tensor(VOCABULARY.size).log().item(), rel=0.02)
        assert 0 < gradient < float("inf")
        assert memory < 768 << 20
