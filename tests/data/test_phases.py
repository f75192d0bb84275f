"""A mixture that changes in mid-run."""

import json
from dataclasses import replace

import numpy as np

from emu3_megatron.config.data import SourceSection
from emu3_megatron.data.phases import Phase, PhasedMixture, phases_of
from emu3_megatron.data.source import Piece


class Numbers:
    """A source of 18 rows; a row is a document of its number."""

    context = 8

    def __init__(self, name):
        self.content = name

    def __len__(self):
        return 18

    def row(self, index):
        return [Piece(np.array([index]), None, self.content, index)]


def sources(**weights):
    section = lambda name, weight: SourceSection(kind="numbers", weight=weight, content=name)
    return [section(name, weight) for name, weight in weights.items()]


def drawn(phases, sequences, since=0, missing=""):
    """For each sequence the name of its source and the number of its row."""

    def open_source(share):
        assert share.content not in missing
        return Numbers(share.content)

    mixture = PhasedMixture(phases, open_source, seed=0, since=since)
    return [(mixture[k][0].content, mixture[k][1]) for k in sequences]


def test_a_run_of_one_phase_stays_one():
    phases = phases_of([], sources(a=1, b=1), 0)

    assert phases_of(phases, sources(a=1, b=1), 40) == phases
    assert Phase.of_json(json.loads(json.dumps(phases[0].as_json()))) == phases[0]


def test_no_row_comes_twice_before_its_source_has_given_all():
    phases = phases_of([], sources(a=3, b=1), 0)
    phases = phases_of(phases, sources(c=1, b=2), 7)
    phases = phases_of(phases, sources(a=1, c=1), 13)
    seen = drawn(phases, range(13 + 12))

    assert {name for name, _ in seen} == set("abc")
    assert len(set(seen)) == len(seen)


def test_what_was_drawn_before_a_change_stays_as_it_was():
    before = phases_of([], sources(a=1, b=1), 0)
    after = phases_of(before, sources(b=1), 9)

    assert drawn(after, range(9)) == drawn(before, range(9))
    assert {name for name, _ in drawn(after, range(9, 20))} == {"b"}


def test_a_source_keeps_its_order_in_another_reader_the_recipe():
    phases = phases_of([], sources(a=1, b=1), 0)
    swapped = phases_of(phases, sources(b=1, a=1), 36)
    epochs = [row for name, row in drawn(phases, range(72)) if name == "b"]

    assert [row for name, row in drawn(swapped, range(72)) if name == "b"] == epochs


def test_a_change_that_took_no_sequence_leaves_no_trace():
    before = phases_of([], sources(a=1), 0)
    twice = phases_of(phases_of(before, sources(b=1), 8), sources(c=1), 8)

    assert [phase.first_sequence for phase in twice] == [0, 8]


def test_sources_of_a_past_phase_may_be_gone():
    phases = phases_of(phases_of([], sources(a=1), 0), sources(b=1), 9)

    assert drawn(phases, range(9, 15), since=9, missing="a") == drawn(phases, range(9, 15))


def test_a_source_that_moved_makes_no_phase_and_is_known_where_it_lies():
    phases = phases_of(phases_of([], sources(a=1), 0), sources(b=1, a=1), 9)
    moved = [
        section.model_copy(update={"kind": "moved"} if section.content == "a" else {})
        for section in sources(b=1, a=1)
    ]

    after = phases_of(phases, moved, 20)

    assert [phase.first_sequence for phase in after] == [0, 9]
    assert after[0].sources[0].section["kind"] == "moved"
    stripped = lambda share: replace(share, section={})
    assert [list(map(stripped, phase.sources)) for phase in after] == [
        list(map(stripped, phase.sources)) for phase in phases
    ]
