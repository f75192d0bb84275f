"""What cannot be generated is refused in one line with the limit and the size."""

import pytest

from emu3_megatron.config import ModelConfig
from emu3_megatron.errors import InputError
from emu3_megatron.generation.estimate import Work, estimate
from emu3_megatron.generation.limits import Limits, describe, trained_context
from emu3_megatron.grammar import Meta

TINY = ModelConfig(preset="emu3-tiny")
LIMITS = Limits(context=704, memory=2**30)


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (
            Work.of_vision(20, Meta(90, 90), what="'a cat' on 90*90"),
            r"'a cat' on 90\*90: 8,192 tokens behind a prompt of 20, and the model knows sequences "
            r"of up to 704; ask for less, or go beyond by --context 8212",
        ),
        (Work.of_text(704, 1), r"a prompt of 704 tokens leaves nothing of the context of 704"),
    ],
)
def test_sequences_beyond_the_context(work, message):
    with pytest.raises(InputError, match=message):
        LIMITS.check_length(work)


def test_a_sequence_that_fills_the_context():
    LIMITS.check_length(Work.of_text(700, 4))


def test_what_the_memory_does_not_hold():
    needed = estimate(TINY, "fp32", [[Work.of_vision(20, Meta(2000, 2000))]])

    with pytest.raises(InputError, match=r"tokens 7\.6 GiB, .* and 1\.0 GiB are free") as caught:
        LIMITS.check_memory(needed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [0, 100_001])
def test_too_many_or_none(count):
    with pytest.raises(InputError, match=rf"{count:,} images: a command makes 1 to 100,000"):
        LIMITS.check_count(count, "images")


def test_the_context_is_what_the_weights_were_trained_on():
    recipe = {"data": {"context": 704}}

    assert trained_context({"recipe": recipe, "max_positions": 5120}) == 5120
    assert trained_context({"recipe": recipe}) == 704
    assert trained_context({"recipe": {}}) is None


def test_an_estimate_says_tokens_memory_and_time():
    needed = estimate(TINY, "fp32", [[Work.of_vision(20, Meta(20, 20))]])

    tokens, memory, time = describe(needed, bandwidth=needed.read / 90, free=2**30)

    assert tokens == "tokens  422, of which 400 are drawn and the others follow"
    assert "of 1.0 GiB that are free" in memory
    assert time.startswith("time    90 s at least")
