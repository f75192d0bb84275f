"""Pairs: the best sample of each prompt against the worst, by the mean of the voters' scores."""

import json
import shutil

import numpy as np
import pytest
from support.preferences import VOCABULARY, add_lines, add_votes, make_samples

from emu3_megatron.alignment.pairs import agreement, build
from emu3_megatron.alignment.samples import Samples
from emu3_megatron.cli import main
from emu3_megatron.data.packing.pack_set import PackSet
from emu3_megatron.data.packing.packs import pack_shards
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.errors import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three prompts with four samples each."""
    return make_samples(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "samples")


def chosen_and_rejected(report):
    return {pair.prompt: (pair.chosen, pair.rejected) for pair in report.pairs}


def test_one_voter(folder, tmp_path):
    add_votes(folder, "ann", {0: (1, 3), 1: (0, 2), 2: (2, 0)})

    report = build(folder, tmp_path / "pairs", margin=1)

    assert chosen_and_rejected(report) == {0: (1, 3), 1: (0, 2), 2: (2, 0)}
    assert report.voters == {"ann": 3}
    assert report.agreement is None


def test_the_shard_holds_the_drawn_tokens_in_pairs(folder, tmp_path):
    add_votes(folder, "ann", {0: (1, 3), 2: (2, 0)})

    build(folder, tmp_path / "pairs", margin=1)

    samples = Samples(folder)
    store = TokenStore(tmp_path / "pairs", VOCABULARY)
    assert store.group == 2
    expected = [samples.document(0, 1), samples.document(0, 3)]
    expected += [samples.document(2, 2), samples.document(2, 0)]
    assert len(store) == len(expected)
    for number, document in enumerate(expected):
        stored = store.document(number)
        assert [span.trained for span in stored.spans] == [False, True, True]
        for one, other in zip(stored.spans, document.spans, strict=True):
            np.testing.assert_array_equal(one.tokens, other.tokens)


def test_the_shard_is_ready_to_pack(folder, tmp_path):
    add_votes(folder, "ann", {0: (1, 3), 1: (0, 2), 2: (2, 0)})
    build(folder, tmp_path / "pairs", margin=1)

    pack_shards([tmp_path / "pairs"], tmp_path / "pairs.pack", 128, vocabulary=VOCABULARY)

    packs = PackSet(tmp_path / "pairs.pack", VOCABULARY)
    pieces = [piece for row in range(len(packs)) for piece in packs.row(row)]
    assert sorted((piece.group, piece.side) for piece in pieces) == [
        (group, side) for group in range(3) for side in range(2)
    ]


def test_where_each_pair_comes_from(folder, tmp_path):
    add_votes(folder, "ann", {1: (0, 2)})

    build(folder, tmp_path / "pairs", margin=1)

    assert json.loads((tmp_path / "pairs.pairs.jsonl").read_text(encoding="utf-8")) == {
        "samples": str(folder),
        "prompt": 1,
        "text": "a cat 1",
        "chosen": 0,
        "rejected": 2,
        "chosen_score": 1,
        "rejected_score": -1,
        "voters": 1,
    }


def test_the_mean_of_the_voters_decides(folder, tmp_path):
    add_votes(folder, "ann", {0: (1, 3)})
    add_votes(folder, "ben", {0: (1, 2)})
    add_votes(folder, "eve", {0: (0, 3)})

    (pair,) = build(folder, tmp_path / "pairs", margin=1).pairs

    assert (pair.chosen, pair.rejected, pair.voters) == (1, 3, 3)
    assert (pair.chosen_score, pair.rejected_score) == pytest.approx((2 / 3, -2 / 3))


def test_nearly_equal_pairs_are_dropped(folder, tmp_path):
    add_votes(folder, "ann", {0: (1, 3), 1: (1, 3)})
    add_votes(folder, "ben", {0: (1, 3), 1: None})
    add_votes(folder, "eve", {0: (1, 3), 1: None})

    report = build(folder, tmp_path / "pairs", margin=1)

    assert chosen_and_rejected(report) == {0: (1, 3)}
    assert report.dropped == {"nearly equal (difference below 1)": 1, "without votes": 1}


def test_samples_of_equal_tokens_make_no_pair(tmp_path):
    folder = make_samples(tmp_path / "samples", prompts=2)
    tokens = np.memmap(folder / "samples.bin", np.int32, "r+")
    size = len(Samples(folder).document(0, 0))
    add_votes(folder, "ann", {0: (0, 1), 1: (0, 1)})
    documents = tokens.reshape(8, size)
    copy_shard_with(folder, documents[[0, 0, *range(2, 8)]])

    report = build(folder, tmp_path / "pairs", margin=1)

    assert report.dropped == {"of equal tokens": 1}


def copy_shard_with(folder, documents):
    """The folder again, with other tokens in the documents."""
    from emu3_megatron.alignment.samples import write_samples
    from emu3_megatron.data.shards.writer import block_of

    samples = Samples(folder)
    old = [samples.document(*divmod(number, 4)) for number in range(len(samples))]
    block = block_of(old)._replace(tokens=documents.reshape(-1).copy())
    write_samples(folder, VOCABULARY, [s for p in samples.prompts for s in p], [block], {})


def test_the_newest_vote_of_a_voter_counts(folder, tmp_path):
    add_votes(folder, "ann", {0: (1, 3), 1: (0, 2)})
    add_lines(folder, "votes-ann.jsonl", {"time": 9, "voter": "ann", "prompt": 0, "undone": True})
    add_votes(folder, "ann", {1: (3, 0)})

    assert chosen_and_rejected(build(folder, tmp_path / "pairs", margin=1)) == {1: (3, 0)}


def test_held_out_prompts_go_into_a_second_shard(tmp_path):
    folder = make_samples(tmp_path / "samples", prompts=10, media=False)
    add_votes(folder, "ann", dict.fromkeys(range(10), (0, 1)))

    report = build(folder, tmp_path / "pairs", margin=1, held_out=0.3)

    assert len(report.pairs) == 7
    assert len(report.held_out) == 3
    assert len(TokenStore(tmp_path / "pairs", VOCABULARY)) == 14
    assert len(TokenStore(tmp_path / "pairs-held-out", VOCABULARY)) == 6
    lines = (tmp_path / "pairs-held-out.pairs.jsonl").read_text(encoding="utf-8").splitlines()
    held_out = {pair.prompt for pair in report.held_out}
    assert {json.loads(line)["prompt"] for line in lines} == held_out
    assert held_out.isdisjoint(pair.prompt for pair in report.pairs)


def test_the_others_stay_held_out_when_one_of_them_gives_no_pair(tmp_path):
    folder = make_samples(tmp_path / "samples", prompts=10, media=False)
    add_votes(folder, "ann", dict.fromkeys(range(10), (0, 1)))
    before = [p.prompt for p in build(folder, tmp_path / "pairs", margin=1, held_out=0.3).held_out]
    add_votes(folder, "ann", {before[0]: None})

    after = [p.prompt for p in build(folder, tmp_path / "pairs", margin=1, held_out=0.3).held_out]

    assert after == before[1:]


def test_a_prompt_stays_held_out_when_more_votes_come(tmp_path):
    folder = make_samples(tmp_path / "samples", prompts=10, media=False)
    add_votes(folder, "ann", dict.fromkeys(range(10), (0, 1)))
    before = build(folder, tmp_path / "pairs", margin=1, held_out=0.3)
    add_votes(folder, "ben", dict.fromkeys(range(10), (0, 2)))

    after = build(folder, tmp_path / "pairs", margin=1, held_out=0.3)

    assert [p.prompt for p in after.held_out] == [p.prompt for p in before.held_out]


def test_agreement_counts_what_two_voters_both_decided():
    ann = {0: {0: 1.0, 1: 0.0, 2: -1.0}}
    ben = {0: {0: 1.0, 1: -1.0, 2: 0.0}}

    # 0 above 1 and 0 above 2 for both; they differ on 1 and 2.
    assert agreement({"ann": ann, "ben": ben}) == (pytest.approx(2 / 3), 3)


def test_the_command_reports(folder, tmp_path, capsys):
    add_votes(folder, "ann", {0: (1, 3), 1: (0, 2)})
    add_votes(folder, "ben", {0: (1, 3)})

    main(["preferences", "build", str(folder), "--out", str(tmp_path / "pairs")])

    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}/pairs: 2 pairs",
        "no pair: 1 prompts without votes",
        "votes: ann 2, ben 1",
        "voters agree in 100% of 5 comparisons of two samples that two of them made",
    ]


# Bad input


def refuse(folder, tmp_path, match, **settings):
    with pytest.raises(InputError, match=match):
        build(folder, tmp_path / "pairs", **{"margin": 1, **settings})
    assert not list(tmp_path.glob("pairs*"))


def test_no_votes(folder, tmp_path):
    refuse(folder, tmp_path, "no votes yet; use emu3 preferences vote or import")


def test_no_pair_left(folder, tmp_path):
    add_votes(folder, "ann", {0: None})

    refuse(folder, tmp_path, r"no pair is left \(1 nearly equal .*, 2 without votes\)")


@pytest.mark.parametrize("settings", [{"held_out": 1.0}, {"held_out": -0.1}, {"margin": -1}])
def test_settings_that_make_no_sense(settings, folder, tmp_path):
    refuse(folder, tmp_path, "give", **settings)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [(1, "of 1 pairs none is left to train on"), (0, "of 1 pairs none is held out")],
)
def test_both_shards_need_a_pair(prompt, message, folder, tmp_path):
    add_votes(folder, "ann", {prompt: (1, 3)})

    refuse(folder, tmp_path, message, held_out=0.1)


@pytest.mark.parametrize(
    ("vote", "message"),
    [
        ({"prompt": 3, "best": 0, "worst": 1}, r"line 2: prompt 3, these samples have 3"),
        ({"prompt": 0, "best": 4, "worst": 1}, r"line 2: sample 4, the prompt has 4"),
        ({"prompt": 0, "best": 1, "worst": 1}, r"line 2: sample 1 is best and worst at once"),
        ({"prompt": 0, "best": 1}, r"line 2: sample None"),
        ({"prompt": 0, "scores": {"7": 1}}, r"line 2: sample 7, the prompt has 4"),
        ({"prompt": 0, "scores": {"1": "x"}}, r"line 2: scores are not numbers"),
        ({"best": 1, "worst": 2}, r"line 2: no vote"),
    ],
)
def test_votes_that_do_not_belong_here(vote, message, folder, tmp_path):
    add_votes(folder, "ann", {0: (1, 3)})
    add_lines(folder, "votes-ann.jsonl", {"time": 5, "voter": "ann", **vote})

    refuse(folder, tmp_path, rf"votes-ann\.jsonl: {message}")


def test_a_last_line_cut_off_by_a_crash_is_no_vote(folder, tmp_path):
    with add_votes(folder, "ann", {0: (1, 3)}).open("a", encoding="utf-8") as file:
        file.write('{"time": 5, "vot')

    assert chosen_and_rejected(build(folder, tmp_path / "pairs", margin=1)) == {0: (1, 3)}


def test_a_folder_that_is_not_finished(folder, tmp_path):
    (folder / "manifest.json").unlink()

    refuse(folder, tmp_path, "no finished folder of samples, manifest.json is missing")


def test_a_damaged_shard(folder, tmp_path):
    add_votes(folder, "ann", {0: (1, 3)})
    tokens = bytearray((folder / "samples.bin").read_bytes())
    tokens[0] ^= 1
    (folder / "samples.bin").write_bytes(tokens)

    refuse(folder, tmp_path, "copy the shard again")


def test_the_shard_of_another_folder(folder, tmp_path):
    add_votes(folder, "ann", {0: (1, 3)})
    other = make_samples(tmp_path / "other", prompts=2)
    for suffix in (".bin", ".idx", ".json"):
        (other / f"samples{suffix}").rename(folder / f"samples{suffix}")

    refuse(folder, tmp_path, r"not the shard that manifest\.json names")


def test_records_that_were_changed(folder, tmp_path):
    add_lines(folder, "samples.jsonl", {"prompt": 3})

    refuse(folder, tmp_path, r"samples\.jsonl: not what was written")


def test_a_vocabulary_that_is_not_known(folder, tmp_path):
    add_votes(folder, "ann", {0: (1, 3)})
    about = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps({**about, "codes": 500}), encoding="utf-8")

    refuse(folder, tmp_path, "names a vocabulary that this version does not know")
