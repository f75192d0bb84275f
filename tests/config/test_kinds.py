"""Sections whose schema their kind decides: built in, or a third party's."""

import pytest
import yaml

from emu3_megatron.config import Recipe, load_recipe
from emu3_megatron.config.base import Component, semantic
from emu3_megatron.config.data import SourceSection
from emu3_megatron.errors import InputError


class NoiseSection(SourceSection):
    """The section of a source that somebody else wrote."""

    strength: float = semantic(1.0, "how much of it")


class Noise:
    Config = NoiseSection


class Timer:
    class Config(Component):
        seconds: int = semantic(1, "between two alarms")


NOISE, TIMER = f"{__name__}:Noise", f"{__name__}:Timer"


@pytest.fixture
def load(tmp_path):
    """A function that loads a valid recipe under overrides."""

    def load(*overrides):
        recipe = {
            "run": {"dir": "run", "steps": 10},
            "model": {"preset": "emu3-tiny"},
            "data": {"context": 64, "sources": [{"pack": "a.pack"}]},
            "batch": {"size": 4},
            "optimizer": {"lr": 1e-3},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
        return load_recipe(Recipe, path, overrides)

    return load


def test_a_third_partys_section_has_its_own_schema(load):
    recipe = load(f"data.sources.1.kind={NOISE}", "data.sources.1.strength=2")

    assert isinstance(recipe.data.sources[1], NoiseSection)
    assert recipe.data.sources[1].strength == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.sourcs=[]"], r"data\.sourcs: no such key; did you mean sources\?"),
        (["data.sources.0.wieght=1"], r"data\.sources\.0\.wieght: no such key; did you mean weig"),
        (["objective.zloss=1"], r"objective\.zloss: no such key; did you mean z_loss\?"),
        ([f"data.sources.1={{kind: '{NOISE}', strenth: 1}}"], r"sources\.1\.strenth: .*strength\?"),
        ([f"hooks.0={{kind: '{TIMER}', second: 1}}"], r"hooks\.0\.second: .* mean seconds\?"),
        ([f"hooks.0={{kind: '{TIMER}', hue: 1}}"], r"hooks\.0\.hue: .*choose one of kind, seconds"),
    ],
)
def test_a_wrong_key_is_named_with_the_nearest_of_its_kind(load, overrides, message):
    with pytest.raises(InputError, match=message):
        load(*overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.kind=files", r"data\.kind: no kind 'files'; choose one of mixture, package\.module"),
        ("hooks=[{seconds: 1}]", r"hooks\.0\.kind: missing; choose one of package\.module:Name"),
        ("hooks=[{kind: 'nowhere:It'}]", r"hooks\.0\.kind: nowhere:It: cannot be imported"),
        (f"hooks=[{{kind: '{__name__}:pytest'}}]", r"hooks\.0\.kind: .*no attribute Config"),
    ],
)
def test_a_kind_that_is_not_there_is_named(load, override, message):
    with pytest.raises(InputError, match=message) as error:
        load(override)
    assert "\n" not in str(error.value)
