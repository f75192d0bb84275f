"""Options of sampling that make no sense are refused before any weight is read."""

import re

import pytest

from emu3_megatron.cli import main
from emu3_megatron.cli.sampling import parse_top_k
from emu3_megatron.config.base import Config
from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.config.runs import RunConfig
from emu3_megatron.errors import InputError
from emu3_megatron.generation.sampling import SamplingSettings


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--top-k", "0", "0: give 1 or more, or none for all tokens"),
        ("--seed", "-1", "Input should be greater than or equal to 0"),
        ("--fps", "nan", "nan: give a number of 0.01 or more"),
        ("--seconds", "inf", "inf: give a number of 0.01 or more"),
    ],
)
def test_a_value_without_a_meaning_is_refused_in_one_line(option, value, says, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["generate", "clip", "run", "a cat", "--out", "a.mp4", option, value])

    (line,) = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2
    assert option in line
    assert says in line


@pytest.mark.parametrize("field", ["temperature", "guidance", "top_p"])
def test_no_number_is_refused(field):
    with pytest.raises(InputError, match=rf"^{field}=nan: give "):
        SamplingSettings(**{field: float("nan")})


def test_top_k_none_is_all_tokens():
    """What the message advises is taken."""
    with pytest.raises(InputError, match="or none for all") as refused:
        SamplingSettings(top_k=0)

    advised = re.search(r"or (\w+) for all", str(refused.value))[1]
    assert SamplingSettings(top_k=parse_top_k(advised)).top_k is None


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        (RunConfig, {"dir": "run", "steps": 1, "seed": -1}),
        (
            PrepareRecipe,
            {"out": "o", "packs": [{"context": 64, "kinds": ["text"], "seed": -1}]},
        ),
    ],
)
def test_recipes_take_no_seed_below_zero(schema: type[Config], values):
    with pytest.raises(ValueError, match=r"seed\n.*greater than or equal to 0"):
        schema.model_validate(values)
