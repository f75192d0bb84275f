"""Which sequences a step takes, with and without a ramp."""

import pytest
from pydantic import ValidationError

from emu3_megatron.config.training import BatchConfig
from emu3_megatron.data.batch_sizes import BatchSizes

RAMP = {"start": 4, "increment": 4, "sequences": 32}


def test_without_a_ramp_every_step_takes_as_many():
    sizes = BatchSizes(BatchConfig(size=8))

    assert [sizes.sequences(step) for step in (1, 2, 100)] == [
        range(8),
        range(8, 16),
        range(792, 800),
    ]


def test_a_ramp_grows_by_its_increment_and_leaves_no_sequence_out():
    sizes = BatchSizes(BatchConfig(size=12, ramp=RAMP))
    steps = [sizes.sequences(step) for step in range(1, 9)]

    assert [len(step) for step in steps] == [4, 4, 4, 4, 8, 8, 12, 12]
    assert [number for step in steps for number in step] == list(range(56))
    assert sizes.taken(8) == 56


def test_a_ramp_that_misses_the_size_is_refused():
    with pytest.raises(ValidationError, match="do not lead to"):
        BatchConfig(size=10, ramp=RAMP)
