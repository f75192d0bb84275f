"""Samples of public suites: every scorer finds its files; runs go on; ranks draw the same."""

import json
import os

import pytest
from support.processes import run_processes
from support.running import emu3
from support.steps import losses
from support.suites import (
    VBENCH,
    found_by_compbench,
    found_by_dpg_bench,
    found_by_geneval,
    found_by_vbench,
    still_clips_of_vbench,
    write_prompts,
)
from support.tiny import VOCABULARY, make_packs, tiny_recipe

from emu3_megatron.cli import main
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.errors import InputError
from emu3_megatron.evaluation.suites import SUITES
from emu3_megatron.evaluation.suites.plan import seed_of
from emu3_megatron.vision.tokenizer import VisionTokenizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of one step, a vision tokenizer, and prompts of each suite."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = tiny_recipe(make_packs(folder), folder)
    run_processes(losses, 1, recipe, 1, None, folder / "checkpoints")
    network = TokenizerNetwork(
        codebook_size=VOCABULARY.num_codes,
        base_channels=32,
        channel_multiplier=(1, 1, 1, 1),
        num_res_blocks=1,
    )
    VisionTokenizer(network).save(folder / "tokenizer")
    write_prompts(folder)
    return folder


FILES = {
    "geneval": "evaluation_metadata.jsonl",
    "t2i-compbench": "color_val.txt",
    "dpg-bench": "prompts",
    "vbench": "VBench_full_info.json",
}


def arguments(suite, *further):
    fixed = ["--tokenizer", "tokenizer", "--context", "600", "--grid", "2x2"]
    return ["evaluate", "draw", suite, ".", "--prompts", FILES[suite], *fixed, *further]


def draw(folder, suite, *further):
    ended = emu3(*arguments(suite, *further), cwd=folder)
    assert ended.code in (None, 0), ended.said
    return ended.said


def all_files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def geneval(trained):
    said = draw(trained, "geneval", "--out", "geneval")
    return trained / "geneval", said


def test_geneval_finds_four_samples_of_each_prompt(geneval):
    folder, said = geneval

    assert found_by_geneval(folder / "images") == {"a bench": 4, "a cow": 4}
    assert "GenEval: 8 files of 8 samples on 2*2, 8 to be drawn" in said
    assert "tokens  " in said
    assert "at least" in said


def test_compbench_finds_prompts_and_question_ids(trained):
    draw(trained, "t2i-compbench", "-n", "2", "--out", "compbench")

    assert found_by_compbench(trained / "compbench" / "images" / "color_val") == [
        (0, "a green bench and a blue bowl"),
        (1, "a green bench and a blue bowl"),
        (2, "He sat. She stood."),
        (3, "He sat. She stood."),
    ]


def test_dpg_bench_cuts_four_images_of_each_prompt(trained):
    draw(trained, "dpg-bench", "--out", "dpg")

    found = found_by_dpg_bench(trained / "dpg" / "images", resolution=16)
    assert found.keys() == {"0", "whoops3"}
    # Four seeds; of so few codes two pictures may be equal.
    assert all(len({image.tobytes() for image in images}) > 1 for images in found.values())


def test_vbench_finds_five_clips_and_25_to_choose_still_ones_from(trained):
    draw(trained, "vbench", "--seconds", "0.5", "--fps", "8", "--out", "vbench")

    folder = trained / "vbench" / "videos"
    prompts = {record["prompt_en"] for record in VBENCH}
    assert found_by_vbench(folder, VBENCH) == dict.fromkeys(prompts, 5)
    assert still_clips_of_vbench(folder, VBENCH[0]["prompt_en"]) == 25
    assert len(list(folder.iterdir())) == 25 + 5 + 5


def test_it_goes_on_and_changes_nothing_that_is_complete(trained, geneval):
    complete, _ = geneval
    before = all_files(complete)
    lost = complete / "images" / "00001" / "samples" / "00002.png"
    lost.unlink()
    (complete / ".work").mkdir()
    (complete / ".work" / "0.png").write_bytes(b"half of")

    def written():
        images = set((complete / "images").rglob("*.png")) - {lost}
        return {path: path.stat().st_mtime_ns for path in images}

    times = written()

    said = draw(trained, "geneval", "--out", "geneval")

    assert "1 to be drawn" in said
    assert all_files(complete) == before
    assert written() == times


def evaluate_here(folder, *further):
    """On one of several ranks."""
    os.chdir(folder)
    main(arguments("geneval", *further))


def test_two_ranks_draw_the_same_files(trained, geneval):
    run_processes(evaluate_here, 2, trained, "--out", "sharded", "--batch", "2")

    assert all_files(trained / "sharded" / "images") == all_files(geneval[0] / "images")


def test_another_setting_is_refused(trained, geneval):
    ended = emu3(*arguments("geneval", "--out", "geneval", "--seed", "5"), cwd=trained)

    assert ended.code == 2
    assert "begun with seed 0, and now it is 5; give the same, or choose another" in ended.said


def test_the_record_holds_the_seed_of_every_file(geneval):
    lines = (geneval[0] / "generated.jsonl").read_text(encoding="utf-8").splitlines()

    first = json.loads(lines[0])
    assert first == {
        "file": "00000/samples/00000.png",
        "prompt": "a bench",
        "seeds": [seed_of("geneval", "a bench", 0, 0)],
    }
    assert len({json.loads(line)["seeds"][0] for line in lines}) == 8


def test_an_estimate_draws_nothing(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)

    main(arguments("geneval", "--out", "nothing", "--estimate"))

    assert "8 to be drawn" in capsys.readouterr().out
    assert not (trained / "nothing").exists()


def plan(suite, path, each=None):
    return SUITES[suite].plan([path], each)


@pytest.mark.parametrize(
    ("suite", "name", "text", "message"),
    [
        ("geneval", "a.jsonl", '{"tag": "t", "include": [1]}', "a.jsonl: line 1: no text `prompt`"),
        ("geneval", "a.jsonl", '{"prompt": "p", "tag": "t"}', "line 1: no list `include`"),
        ("geneval", "a.jsonl", "a cat\n", "line 1: not JSON"),
        ("t2i-compbench", "a.txt", "a cat\n\na dog\n", "a.txt: line 2: empty"),
        ("t2i-compbench", "a.txt", "a cat\nin/out\n", "line 2: the prompt names a file, and has"),
        ("t2i-compbench", "a.txt", "snake_case\n", "line 1: a '_', at which"),
        ("t2i-compbench", "a.txt", "é" * 130, "has 271 bytes; shorten it to 255"),
        ("vbench", "a.json", '[{"prompt_en": "p"}]', "record 1: no list `dimension`"),
        ("vbench", "a.json", "{}", "no list of prompts"),
        ("dpg-bench", "a.txt", "a cat", "a.txt: no folder of .txt files"),
    ],
)
def test_prompts_files_that_cannot_be_used(tmp_path, suite, name, text, message):
    (tmp_path / name).write_text(text, encoding="utf-8")

    with pytest.raises(InputError) as refused:
        plan(suite, tmp_path / name)
    assert message in str(refused.value)


def test_a_number_that_the_suite_cannot_score_is_refused(tmp_path):
    with pytest.raises(InputError, match="--number 3: VBench scores 5 of each prompt"):
        plan("vbench", tmp_path / "any.json", 3)


def test_repeated_prompts_are_drawn_with_other_seeds(tmp_path):
    (tmp_path / "a.txt").write_text("a cat\na cat\n", encoding="utf-8")

    files = plan("t2i-compbench", tmp_path / "a.txt", 2).files
    assert [file.numbers for file in files] == [(0,), (1,), (2,), (3,)]
