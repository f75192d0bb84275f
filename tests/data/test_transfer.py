"""Batches on their way from a data worker."""

import os

import torch
from torch.utils.data import DataLoader

from emu3_megatron.data.transfer import Parcel


def value():
    return {
        "ids": torch.arange(7),
        "flags": torch.tensor([True, False, True]),
        "turned": torch.arange(6.0).view(2, 3).T,
        "none": torch.empty(0, 4),
        "number": torch.tensor(2.5, dtype=torch.bfloat16),
        "documents": [("shard", 3)],
    }


def test_a_value_arrives_as_it_was_sent():
    given, sent = Parcel.of(value()).value(), value()

    assert given.pop("documents") == sent.pop("documents")
    for name, tensor in sent.items():
        assert given[name].dtype == tensor.dtype
        assert torch.equal(given[name], tensor)


def test_a_batch_holds_one_file_open_however_many_tensors_it_has():
    many = [Parcel.of([torch.zeros(9)] * 100) for _ in range(3)]
    before = len(os.listdir("/proc/self/fd"))
    kept = [parcel.value() for parcel in DataLoader(many, batch_size=None, num_workers=1)]

    assert len(os.listdir("/proc/self/fd")) - before < 30
    assert sum(len(value) for value in kept) == 300
