"""Packs with awkward document borders, ways to scatter them over ranks, and what is right.

Also what two plans of a ring must agree in.
"""

from dataclasses import dataclass

import torch
from emu3_kernels.ring_attention import RingPlan
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Pack:
    """Documents of one sequence.

    Attributes:
        lengths: of the documents, in order.
        tail: tokens behind the last document, which see nothing.
    """

    name: str
    lengths: tuple[int, ...]
    tail: int = 0

    def __str__(self) -> str:
        return self.name

    @property
    def tokens(self) -> int:
        return sum(self.lengths) + self.tail

    @property
    def boundaries(self) -> torch.Tensor:
        return torch.tensor([0, *self.lengths]).cumsum(0)


PACKS = (
    Pack("one document", (80,)),
    Pack("borders on block edges", (20, 20, 40)),
    Pack("borders beside block edges", (19, 21, 1, 39)),
    Pack("one-token documents", (1,) * 40),
    Pack("a long document among short ones", (1, 2, 70, 3, 1, 4)),
    Pack("a tail without document", (30, 33), tail=17),
    Pack("an odd length", (13, 50, 24)),
    Pack("400 tiny documents", (1, 2, 3, 2) * 100),
)


def scattered_shares(tokens: int, ranks: int, block: int, seed: int = 0) -> list[torch.Tensor]:
    """Blocks of tokens dealt to ranks at random, so that shares are unequal and full of holes."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.arange(tokens).split(block)
    owners = torch.randint(ranks, (len(blocks),), generator=generator)
    owners[:ranks] = torch.arange(ranks)  # nobody goes without
    return [
        torch.cat([b for b, owner in zip(blocks, owners.tolist(), strict=True) if owner == rank])
        for rank in range(ranks)
    ]


def visible(pack: Pack, queries_t: torch.Tensor) -> torch.Tensor:
    """Which tokens some queries see, bool [queries, tokens]: earlier ones of their document."""
    documents = torch.bucketize(torch.arange(pack.tokens), pack.boundaries[1:], right=True)
    same = documents[queries_t, None] == documents[None, :]
    inside = documents < len(pack.lengths)
    return same & inside & (torch.arange(pack.tokens) <= queries_t[:, None])


@dataclass(frozen=True)
class Inputs:
    """Query, key, value [tokens, heads, d] and the gradient of out."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    dout: torch.Tensor

    @classmethod
    def random(cls, tokens: int, dtype: torch.dtype = torch.float64, dim: int = 16) -> "Inputs":
        """Four query heads over two key heads."""
        generator = torch.Generator().manual_seed(0)
        draw = lambda heads: torch.randn(tokens, heads, dim, generator=generator).to(dtype)
        return cls(draw(4), draw(2), draw(2), draw(4))

    def of(self, rows: torch.Tensor) -> "Inputs":
        """Some tokens of each."""
        return Inputs(self.query[rows], self.key[rows], self.value[rows], self.dout[rows])

    def leaves(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query, key and value that collect gradients."""
        return tuple(
            t.detach().clone().requires_grad_() for t in (self.query, self.key, self.value)
        )


def one_device(pack: Pack, inputs: Inputs, scale: float = 0.25) -> tuple[torch.Tensor, ...]:
    """Out and the gradients of query, key and value, by torch with a dense mask, in fp64."""
    query, key, value = (leaf.detach().double().requires_grad_() for leaf in inputs.leaves())
    mask = visible(pack, torch.arange(pack.tokens))
    rows = mask.any(1)  # torch's softmax over nothing is NaN
    out = scaled_dot_product_attention(
        *(t.transpose(0, 1)[None] for t in (query[rows], key, value)),
        attn_mask=mask[rows],
        scale=scale,
        enable_gqa=True,
    )[0].transpose(0, 1)
    whole = torch.zeros_like(query).index_put((rows.nonzero().flatten(),), out)
    gradients = torch.autograd.grad(whole, (query, key, value), inputs.dout.double())
    return whole.detach(), *gradients


def tensors_of(plan: RingPlan) -> list[torch.Tensor]:
    """All tensors of a plan, in a fixed order."""
    ranges = [step.ranges for step in plan.steps if step.ranges is not None]
    return [
        plan.queries_t,
        *(tensor for step in plan.steps for tensor in (step.keys_k, step.sent_rows)),
        *(tensor for one in ranges for tensor in (one.first_q, one.last_q, one.borders)),
    ]


def assert_equal_plans(found: RingPlan, expected: RingPlan) -> None:
    """Equal in everything, whatever memory the tensors are in."""
    assert (found.rank, found.size) == (expected.rank, expected.size)
    for step, other in zip(found.steps, expected.steps, strict=True):
        assert (step.source, step.target) == (other.source, other.target)
        assert (step.ranges is None) == (other.ranges is None)
        if step.ranges is not None:
            assert step.ranges.segments == other.ranges.segments
            assert step.ranges.keys == other.ranges.keys
    for tensor, other in zip(tensors_of(found), tensors_of(expected), strict=True):
        assert tensor.dtype == other.dtype
        assert torch.equal(tensor.cpu(), other.cpu())
