"""`emu3 generate`: every kind, from the command to its files, and refusals before any weight."""

import json

import numpy as np
import pytest
from PIL import Image
from support.processes import run_processes
from support.running import emu3
from support.steps import losses
from support.tiny import VOCABULARY, make_packs, tiny_recipe

from emu3_megatron.cli import main
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.media.videos import read_info
from emu3_megatron.media.writers import write_png
from emu3_megatron.vision.tokenizer import VisionTokenizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of one step, a vision tokenizer beside it as after an import, images."""
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
    for name in ("red", "blue"):
        write_png(folder / f"{name}.png", Image.new("RGB", (24, 16), name))
    return folder


def generate(folder, kind, *arguments, context=600):
    ended = emu3("generate", kind, ".", "--context", str(context), *arguments, cwd=folder)
    assert ended.code in (None, 0), ended.said
    return ended.said


def test_images_of_a_file_of_prompts(trained):
    (trained / "prompts.jsonl").write_text(
        '{"prompt": "a cat", "seed": 7}\n{"prompt": "a dog", "height": 3, "width": 4}\n',
        encoding="utf-8",
    )

    said = generate(
        trained, "image", "--prompts", "prompts.jsonl", "-n", "2", "--grid", "2x3", "--out", "many"
    )

    assert "many: 4 images, guidance 1" in said
    images = {path.name: Image.open(path).size for path in (trained / "many").glob("*.png")}
    assert images == {
        "000-a-cat-seed-7.png": (24, 16),
        "000-a-cat-seed-8.png": (24, 16),
        "001-a-dog-seed-2.png": (32, 24),
        "001-a-dog-seed-3.png": (32, 24),
    }
    lines = (trained / "many" / "generated.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["grid"] for line in lines] == ["2*3", "2*3", "3*4", "3*4"]


def test_one_seed_is_one_image(trained):
    generate(trained, "image", "a cat", "-n", "2", "--grid", "2x3", "--seed", "4", "--out", "two")
    generate(trained, "image", "a cat", "--grid", "2x3", "--seed", "5", "--out", "one.png")

    in_folder, alone = (
        np.asarray(Image.open(trained / name)) for name in ("two/000-a-cat-seed-5.png", "one.png")
    )
    np.testing.assert_array_equal(in_folder, alone)


def test_a_clip_that_goes_on_twice(trained):
    length = ["--seconds", "1", "--fps", "8", "--seen", "0.5", "--more", "0.5", "--steps", "2"]

    said = generate(trained, "clip", "waves", "--grid", "2x3", *length, "--out", "waves.mp4")

    assert "waves.mp4: a clip of 2 s" in said
    assert (read_info(trained / "waves.mp4").fps, read_info(trained / "waves.mp4").seconds) == (
        8,
        2,
    )


def test_a_given_clip_goes_on(trained):
    size = ["--grid", "2x3", "--fps", "8"]
    generate(trained, "clip", "waves", *size, "--seconds", "1", "--out", "first.mp4")

    longer = ["--first", "first.mp4", "--seen", "1", "--more", "0.5", "--out", "longer.mp4"]
    generate(trained, "clip", "waves", *size, *longer)

    assert read_info(trained / "longer.mp4").seconds == 1.5


def test_captions_of_images(trained):
    flags = ["--area", "384", "--max-tokens", "8", "--out", "captions.jsonl"]

    generate(trained, "caption", "red.png", "blue.png", *flags)

    lines = [
        json.loads(line)
        for line in (trained / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [line["file"] for line in lines] == ["red.png", "blue.png"]
    assert all(isinstance(line["caption"], str) for line in lines)


def test_answers_to_dialogues_with_several_images(trained):
    turns = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "Red."},
        {"from": "human", "value": "<image>\nAnd this?"},
    ]
    row = {"id": 3, "conversations": turns, "image": ["red.png", "blue.png"]}
    (trained / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")

    flags = ["--area", "384", "--max-tokens", "8"]
    generate(trained, "dialogue", "--rows", "rows.jsonl", *flags, "--out", "answers.jsonl")

    (line,) = (trained / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    answered = json.loads(line)
    assert answered["id"] == 3
    assert isinstance(answered["answer"], str)


def test_text_with_an_image_in_it_becomes_a_document(trained):
    flags = ["--show", "red.png", "--area", "384", "--max-tokens", "8", "--out", "story"]

    said = generate(trained, "text", "Look: <image> and", *flags)

    assert "story/document.md: 0 images drawn; it ends after --max-tokens 8" in said
    assert (
        (trained / "story" / "document.md")
        .read_text(encoding="utf-8")
        .startswith("Look: \n\n![2*3](1.png)")
    )
    assert (trained / "story" / "1.png").is_file()


def test_two_ranks_draw_what_one_draws(trained):
    shared = ["generate", "image", str(trained), "a cat", "--grid", "2x3"]
    shared += ["--tokenizer", str(trained / "tokenizer"), "--temperature", "0"]

    for ranks in (1, 2):
        run_processes(main, ranks, [*shared, "--out", str(trained / f"by-{ranks}.png")])

    one, two = (np.asarray(Image.open(trained / f"by-{ranks}.png")) for ranks in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_an_estimate_makes_nothing(trained):
    said = generate(trained, "image", "a cat", "--grid", "5x5", "--out", "no.png", "--estimate")

    assert "tokens  32, of which 25 are drawn" in said
    assert "GB/s that copying reaches here" in said
    assert not (trained / "no.png").exists()


# Refusals


@pytest.fixture
def without_weights(trained, tmp_path):
    """What a checkpoint says of itself, without its weights."""
    (tmp_path / "run").mkdir()
    manifest = next((trained / "checkpoints").glob("step-*/manifest.json"))
    (tmp_path / "run" / "manifest.json").write_text(
        manifest.read_text(encoding="utf-8"), encoding="utf-8"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["image", "x", "--grid", "20000x20000"], "'x' on 20000*20000: 400,020,002 tokens behind"),
        (
            ["image", "x", "--grid", "20000x20000", "--context", "500000000"],
            "GiB are free; ask for a smaller grid, or less at once by --batch",
        ),
        (["image", "x", "-n", "100001"], "100,001 images: a command makes 1 to 100,000"),
        (["image", "x" * 200], "leaves nothing of the context of 128"),
        (["clip", "x", "--grid", "2x3"], "'x' on 2*3*30 24fps 5s: 271 tokens behind"),
        (["clip", "x", "--first", "red.png", "--steps", "0"], "nothing to draw; give 1 or more"),
        (["image"], "give a caption, or --prompts with a file of them"),
        (["image", "x", "--prompts", "p.txt"], "give a caption, or --prompts with a file of them"),
        (["dialogue"], "give a question, with --show for what it is about, or --rows alone"),
        (["dialogue", "why", "--show", "cat.txt"], "cat.txt: neither an image nor a video"),
        (["dialogue", "<image>?"], "images and marks: 0 images, 1 <image> marks"),
    ],
)
def test_what_cannot_be_generated_is_refused_in_one_line(
    arguments, message, without_weights, monkeypatch, capsys
):
    monkeypatch.chdir(without_weights)
    kind, *others = arguments
    out = {"image": ["--out", "out.png"], "clip": ["--out", "out.mp4"]}.get(kind, [])

    with pytest.raises(SystemExit) as ended:
        main(["generate", kind, "run", *others, *out])

    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("emu3: ")
    assert message in line
    assert {path.name for path in without_weights.iterdir()} == {"run"}


def test_a_folder_that_cannot_be_made_is_found_before_any_weight_is_read(without_weights):
    (without_weights / "file").touch()

    image = ("image", "run", "x", "--grid", "2x2", "--out", "file/x.png")

    ended = emu3("generate", *image, cwd=without_weights)

    assert ended.code == 2
    assert ended.said == "emu3: file: File exists\n"


def test_a_prompt_of_text_that_is_too_long(without_weights):
    ended = emu3("generate", "text", "run", "x" * 200, cwd=without_weights)

    assert ended.code == 2
    assert ended.said.startswith("emu3: ")
    assert "a prompt of 201 tokens leaves nothing of the context of 128" in ended.said


def test_guesses_change_nothing_but_are_counted(trained):
    image = ("image", "a cat", "--grid", "3x4")
    generate(trained, *image, "--out", "plain.png")

    said = generate(trained, *image, "--speculate", "4", "--out", "guessed.png")

    assert "tokens a call with guesses" in said
    assert (trained / "plain.png").read_bytes() == (trained / "guessed.png").read_bytes()


def test_weights_in_eight_bits_and_their_agreement(trained):
    (trained / "captions.txt").write_text("a cat\na dog\n", encoding="utf-8")

    said = generate(trained, "agreement", "--prompts", "captions.txt", "--grid", "2x3")
    generate(trained, "image", "a cat", "--grid", "2x3", "--eight-bit", "--out", "eight.png")

    lines = [line for line in said.splitlines() if "nats a code" in line]
    assert [line.split(": ")[-1] for line in lines] == ["a cat", "a dog", "all 2 images"]
    assert Image.open(trained / "eight.png").size == (24, 16)
