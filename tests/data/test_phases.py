"""A mixture that changes in mid-run."""

import json
import shutil

import pytest
from support.tiny import VOCABULARY, make_packs

from emu3_megatron.config.data import PackSource
from emu3_megatron.data.phases import Phase, PhasedMixture, phases_of
from emu3_megatron.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three pack folders, a to c, of the same packs."""
    folder = tmp_path_factory.mktemp("phases")
    pack = make_packs(folder)
    for name in "abc":
        shutil.copytree(pack, folder / f"{name}.pack")
    return folder


def sources(folder, **weights):
    return [PackSource(pack=folder / f"{n}.pack", weight=w) for n, w in weights.items()]


def drawn(phases, samples, since=0):
    """For each sample the letter of its source and the number of its pack."""
    mixture = PhasedMixture(phases, VOCABULARY, seed=0, since=since)
    return [(mixture[k][0].path.stem, mixture[k][1]) for k in samples]


def test_a_run_of_one_phase_stays_one(folder):
    phases = phases_of([], sources(folder, a=1, b=1), 0)

    assert phases_of(phases, sources(folder, a=1, b=1), 40) == phases
    assert Phase.of_json(json.loads(json.dumps(phases[0].as_json()))) == phases[0]


def test_no_pack_comes_twice_before_its_source_has_given_all(folder):
    phases = phases_of([], sources(folder, a=3, b=1), 0)
    phases = phases_of(phases, sources(folder, c=1, b=2), 7)
    phases = phases_of(phases, sources(folder, a=1, c=1), 13)
    seen = drawn(phases, range(13 + 12))
    sizes = {s.path.stem: len(s) for s in PhasedMixture(phases, VOCABULARY, 0).sources}

    assert {name for name, _ in seen} == set("abc")
    for name in "abc":
        packs = [pack for source, pack in seen if source == name]
        first_epoch = packs[: sizes.get(name, sizes["a"])]
        assert len(set(first_epoch)) == len(first_epoch)


def test_what_was_drawn_before_a_change_stays_as_it_was(folder):
    before = phases_of([], sources(folder, a=1, b=1), 0)
    after = phases_of(before, sources(folder, b=1), 9)

    assert drawn(after, range(9)) == drawn(before, range(9))
    assert {name for name, _ in drawn(after, range(9, 20))} == {"b"}


def test_a_change_that_took_no_sample_leaves_no_trace(folder):
    before = phases_of([], sources(folder, a=1), 0)
    twice = phases_of(phases_of(before, sources(folder, b=1), 8), sources(folder, c=1), 8)

    assert [phase.first_sample for phase in twice] == [0, 8]


def test_packs_of_a_past_phase_may_be_gone(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "moved")
    phases = phases_of([], sources(tmp_path / "moved", a=1), 0)
    phases = phases_of(phases, sources(tmp_path / "moved", b=1), 9)
    whole = drawn(phases, range(9, 15))
    shutil.rmtree(tmp_path / "moved" / "a.pack")

    assert drawn(phases, range(9, 15), since=9) == whole


def test_other_packs_under_a_known_name_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "changed")
    phases = phases_of([], sources(tmp_path / "changed", a=1), 0)
    header = tmp_path / "changed" / "a.pack" / "pack.json"
    header.write_text(json.dumps({**json.loads(header.read_text()), "seed": 9}))

    with pytest.raises(InputError, match=r"a\.pack: other packs than this run has read so far"):
        phases_of(phases, sources(tmp_path / "changed", a=1), 9)
