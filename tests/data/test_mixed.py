"""MixtureData: an order that no layout changes, phases, and sources that do not fit."""

import json
import os
import resource
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.batches import reader

from emu3_megatron.config.data import MixtureConfig
from emu3_megatron.config.training import BatchConfig
from emu3_megatron.data.mixed import MixtureData
from emu3_megatron.data.packing.packs import pack_shards
from emu3_megatron.data.setting import Setting
from emu3_megatron.data.shards.sidecar import shard_file
from emu3_megatron.data.steps import documents_of_step
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import plain_text
from emu3_megatron.vocabulary import Vocabulary

WEIGHTS = {"text": 1.0, "structure": 0.25, "code": 0.5}


@pytest.fixture
def packs(make_packs, vocabulary):
    """Twelve packs of one text each."""
    return make_packs([plain_text(vocabulary, letter * 50) for letter in "abcdefghijkl"], 64).path


@pytest.fixture
def open_data(vocabulary):
    """A function that opens a mixture of pack folders, eight sequences a step."""

    def make(*packs, micro_size=1, vocabulary=vocabulary, size=8, **section):
        sources = [{"pack": str(pack)} for pack in packs]
        values = {"context": 64, "sources": sources, "workers": 0, **section}
        batch = BatchConfig(size=size, micro_size=micro_size)
        setting = Setting(vocabulary, batch, seed=3, weights=WEIGHTS)
        return MixtureData(MixtureConfig.model_validate(values), setting)

    return make


def tokens(data, data_size=1, first=0, last=4):
    """Tokens of steps after `first` up to `last`, each [8, s], the ranks' parts put together."""
    ranks = [data.batches(reader(rank, data_size), first, last) for rank in range(data_size)]
    return [
        torch.cat([batch.tokens for rank in step for batch in rank])
        for step in zip(*ranks, strict=True)
    ]


def assert_same_steps(steps, expected):
    assert len(steps) == len(expected)
    for found, expected_tokens in zip(steps, expected, strict=True):
        assert torch.equal(found, expected_tokens)


# Order


@pytest.mark.parametrize(("data_size", "micro_size"), [(1, 4), (2, 1), (2, 4), (4, 2)])
def test_order_depends_on_no_layout(open_data, packs, data_size, micro_size):
    other = tokens(open_data(packs, micro_size=micro_size), data_size)

    assert_same_steps(other, tokens(open_data(packs)))


def test_a_resumed_run_is_the_tail_of_the_full_one(open_data, packs):
    whole = open_data(packs)
    expected = tokens(whole)
    resumed = open_data(packs)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))

    assert_same_steps(tokens(resumed, first=2), expected[2:])


def test_workers_change_nothing(open_data, packs):
    with_workers = tokens(open_data(packs, micro_size=4, workers=2))

    assert_same_steps(with_workers, tokens(open_data(packs, micro_size=4)))


def test_a_step_of_many_micro_batches_fits_a_low_limit_of_open_files(open_data, packs):
    """Every tensor that a worker sends holds a file open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_open = len(os.listdir("/proc/self/fd"))  # by tests before, in the same process
    resource.setrlimit(resource.RLIMIT_NOFILE, (is_open + 64, hard))
    try:
        (step,) = open_data(packs, workers=1, size=64).batches(reader(), 0, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert len(step) == 64


def test_an_epoch_shows_every_pack_once_and_the_next_in_another_order(open_data, packs):
    first, second = tokens(open_data(packs, size=12), last=2)

    assert len(first.unique(dim=0)) == 12
    assert torch.equal(first.unique(dim=0), second.unique(dim=0))
    assert not torch.equal(first, second)


def test_steps_are_lists_of_micro_batches(open_data, packs):
    data = open_data(packs, micro_size=2)

    (step,) = data.batches(reader(1, 2), 0, 1)

    assert [batch.tokens.shape for batch in step] == [(2, 64), (2, 64)]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_trainer_gives_is_applied_where_batches_are_made(open_data, packs, workers):
    place = lambda batch: replace(batch, inputs=batch.tokens.sum())
    data = open_data(packs, workers=workers)

    (step,) = data.batches(reader(place=place), 0, 1)

    assert all(batch.inputs == batch.tokens.sum() for batch in step)


def test_a_batch_that_does_not_divide_is_refused(open_data, packs):
    with pytest.raises(InputError, match=r"batch\.size=8 must be a multiple of .*3 x 1"):
        open_data(packs, micro_size=3).batches(reader(), 0, 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_id_is_one_clean_error(open_data, packs, tmp_path, workers):
    data = open_data(packs, workers=workers, size=12)
    with shard_file(tmp_path / "train", "bin").open("r+b") as file:  # after it was opened
        file.write(np.int32(979).tobytes())

    with pytest.raises(InputError, match=r"^[^\n]*train\.bin: document 0 holds id 979[^\n]*$"):
        list(data.batches(reader(), 0, 1))


# Sources


def test_the_section_names_what_every_source_holds(open_data, packs):
    (source,) = open_data(packs).section.sources

    assert len(source.content) == 64
    assert source.pack == packs


def test_a_folder_that_moved_is_the_same_source(open_data, packs, tmp_path):
    data = open_data(packs)
    expected = tokens(data)
    state = data.state_dict()
    (tmp_path / "moved").mkdir()
    for path in tmp_path.glob("train*"):
        path.rename(tmp_path / "moved" / path.name)
    moved = open_data(tmp_path / "moved" / "train.pack")
    moved.load_state_dict(state)

    assert_same_steps(tokens(moved, first=2), expected[2:])
    assert moved.section.sources[0].content == data.section.sources[0].content
    (phase,) = moved.state_dict()["phases"]
    assert phase["sources"][0]["section"]["pack"] == str(tmp_path / "moved" / "train.pack")


def test_other_packs_in_the_folder_are_another_source(open_data, packs, tmp_path, vocabulary):
    data = open_data(packs)
    tokens(data)
    pack_shards([tmp_path / "train"], packs, 64, vocabulary=vocabulary, seed=9)
    changed = open_data(packs)
    changed.load_state_dict(data.state_dict())
    changed.batches(reader(), 2, 4)

    phases = changed.state_dict()["phases"]
    assert [phase["first_sequence"] for phase in phases] == [0, 16]
    assert phases[0]["sources"][0]["content"] != phases[1]["sources"][0]["content"]


def test_a_recipe_may_say_what_a_source_must_hold(open_data, packs):
    source = {"pack": str(packs), "content": "0" * 64}

    with pytest.raises(InputError, match=r"train\.pack: holds .*data\.sources\.0\.content says 00"):
        open_data(sources=[source])


def test_two_sources_that_hold_the_same_are_refused(open_data, packs, tmp_path):
    shutil.copytree(packs, tmp_path / "copy.pack")

    with pytest.raises(InputError, match=r"train\.pack and .*copy\.pack hold the same; name one"):
        open_data(packs, tmp_path / "copy.pack")


def test_missing_packs_are_found_at_once(open_data, tmp_path):
    with pytest.raises(InputError, match=r"none\.pack: no packs there"):
        open_data(tmp_path / "none.pack")


def test_another_context_is_found_at_once(open_data, packs):
    with pytest.raises(InputError, match=r"context of 64, data\.context is 128; pack again"):
        open_data(packs, context=128)


def test_another_vocabulary_is_found_at_once(open_data, packs):
    with pytest.raises(InputError, match="another vocabulary"):
        open_data(packs, vocabulary=Vocabulary.tiny(num_codes=1024))


# What `emu3 inspect batch` says


def test_the_documents_of_a_step_are_named(open_data, make_packs, make_image, tmp_path):
    packs = make_packs([make_image("a cat")], 64)
    data = open_data(packs.path, size=1, null_prompt=1)

    assert list(documents_of_step(data, 3)) == [
        f"sequence 2: row 0 of {packs.path}",
        f"  {tmp_path / 'train'} document 0: 24 tokens, its caption of 5 left out",
    ]
