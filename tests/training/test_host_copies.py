"""What the host copies to the device for a micro-batch: everything at once, nothing afterwards.

The device is "meta", which needs no GPU: a copy to it is dispatched as one to a GPU is.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from emu3_kernels.attention_tile import packed
from emu3_kernels.ring_attention import RingDropout, RingPlan
from support.rings import assert_equal_plans, tensors_of
from support.tiny import VOCABULARY
from torch.utils._python_dispatch import TorchDispatchMode

from emu3_megatron.data.batches import Batch
from emu3_megatron.data.transfer import Parcel
from emu3_megatron.model import Inputs
from emu3_megatron.training.placing import Placer
from emu3_megatron.training.sums import ObjectiveSums

META = torch.device("meta")
RANKS, TOKENS = 8, 128


class Copies(TorchDispatchMode):
    """The tensors that were copied from the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[torch.Tensor] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None):
        out = function(*arguments, **(named or {}))
        if function is torch.ops.aten._to_copy.default and arguments[0].device.type == "cpu":
            self.found.append(arguments[0])
        return out


@pytest.fixture
def batch() -> Batch:
    """A rank of eight of a context parallel ring, three documents, dealt out in blocks of four."""
    tokens = torch.arange(TOKENS)[None]
    blocks = torch.arange(TOKENS).view(-1, RANKS, 4).transpose(0, 1).reshape(1, RANKS, -1)
    whole = Batch(
        tokens,
        labels=tokens,
        weights=torch.ones(1, TOKENS),
        positions=tokens,
        boundaries=[torch.tensor([0, 50, 90, TOKENS], dtype=torch.int32)],
        order=blocks,
        documents=[],
        columns={"advantage": torch.zeros(1, TOKENS)},
    )
    return Placer(VOCABULARY, 3)(whole)


def forward(batch: Batch) -> tuple[Inputs, list[torch.Tensor]]:
    """What the objective gets, and the tensors that were copied for it."""
    seen = []
    objective = lambda decoder, inputs, denominators: seen.append(inputs)
    mesh: Any = SimpleNamespace(device=META, context_size=1)
    with Copies() as copies:
        ObjectiveSums(objective, mesh, Placer(VOCABULARY, 3)).forward(None, batch, torch.ones(1))
    return seen[0], copies.found


def test_a_micro_batch_from_a_worker_is_copied_once_as_it_came(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: Batch = Parcel.of(batch).value()
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: True)  # it needs a GPU

    inputs, copied = forward(received)

    memory = received.inputs.tokens_bs.untyped_storage().data_ptr()
    assert [tensor.untyped_storage().data_ptr() for tensor in copied] == [memory]
    assert {tensor.device for tensor in tensors_of(inputs.layout.plan)} == {META}
    assert inputs.columns["advantage"].shape == (1, TOKENS // RANKS)


def test_a_micro_batch_made_here_is_copied_once_too(batch: Batch) -> None:
    inputs, copied = forward(batch)

    assert len(copied) == 1
    assert inputs.tokens_bs.device == inputs.layout.plan.steps[7].keys_k.device == META


def test_what_was_copied_at_once_is_what_was_given(batch: Batch) -> None:
    given = batch.inputs
    arrived: list[torch.Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        # The CPU as a device of its own: bytes arrive and can be looked at.
        real = torch.Tensor.to
        arrive = lambda tensor, device, **how: arrived.append(real(tensor, "cpu")) or arrived[-1]
        patch.setattr(torch.Tensor, "to", arrive)
        moved = given.to("meta")

    assert len(arrived) == 1
    assert_equal_plans(moved.layout.plan, given.layout.plan)
    for name in ("tokens_bs", "positions_bs", "labels_bs", "weights_bs", "classes_bs", "kept"):
        assert torch.equal(getattr(moved, name), getattr(given, name)), name
    assert torch.equal(moved.columns["advantage"], given.columns["advantage"])


def test_layers_copy_nothing(batch: Batch) -> None:
    inputs, _ = forward(batch)
    plan: RingPlan = inputs.layout.plan

    with Copies() as copies:
        for step in plan.steps:
            if step.ranges is not None:
                assert [*packed.calls(step.ranges)]
                step.ranges.heaviest_first(16, by_key=True)

    assert copies.found == []


def test_dropout_counts_tokens_once_for_all_layers(batch: Batch) -> None:
    plan = batch.inputs.layout.plan
    layers = [RingDropout(p=0.1, seed=layer, first_token=1000) for layer in range(2)]

    first, second = (layer.of_step(plan, plan.steps[1]) for layer in layers)

    assert first.query_index_t is second.query_index_t
    assert first.key_index_t is second.key_index_t
    assert torch.equal(first.key_index_t, plan.steps[1].keys_k + 1000)
