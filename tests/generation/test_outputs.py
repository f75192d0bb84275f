"""What drawings are called, how they are batched, and how far they have come."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.errors import InputError
from emu3_megatron.generation.files.outputs import (
    batches_of,
    check_suffix,
    outputs_of,
    write_record,
)
from emu3_megatron.generation.files.progress import Previews, RowProgress, rows_in
from emu3_megatron.generation.files.prompts import Prompt
from emu3_megatron.grammar import Meta, Vision, open_prompt
from emu3_megatron.media.images import to_image
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary

META = Meta(4, 5)
CAT, DOG = (Prompt(text, "image", meta=META) for text in ("A tabby cat, über alles!", "a dog"))
PNG = [".png"]


def test_files_say_prompt_and_seed():
    outputs = outputs_of([CAT, DOG], 2, 10, Path("out"), PNG)

    assert [str(output.path) for output in outputs] == [
        "out/000-a-tabby-cat-über-alles-seed-10.png",
        "out/000-a-tabby-cat-über-alles-seed-11.png",
        "out/001-a-dog-seed-12.png",
        "out/001-a-dog-seed-13.png",
    ]


def test_a_prompt_without_words_has_a_name_too():
    (output,) = outputs_of([Prompt("!?", "image", meta=META)], 1, 0, Path("out"), PNG)

    assert output.path.name == "000-no-words-seed-0.png"


def test_one_drawing_has_the_name_that_it_was_given():
    (output,) = outputs_of([CAT], 1, 10, Path("cat.png"), PNG)

    assert (output.path, output.seed, output.in_folder) == (Path("cat.png"), 10, False)


def test_one_file_for_several():
    with pytest.raises(InputError, match=r"--out cat\.png: one file for 2; name a folder"):
        outputs_of([CAT], 2, 10, Path("cat.png"), PNG)


def test_folders_may_have_dots_and_files_of_other_kinds_are_refused():
    check_suffix(Path("runs/v1.5"), PNG)
    with pytest.raises(InputError, match=r"--out cat\.mp4: name a file that ends in \.png"):
        check_suffix(Path("cat.mp4"), PNG)


def test_seeds_of_a_batch_count_upwards():
    own = Prompt("a fox", "image", meta=META, seed=50)

    batches = batches_of(outputs_of([CAT, own, DOG], 2, 10, Path("out"), PNG), 3)

    assert [[output.seed for output in batch] for batch in batches] == [
        [10, 11],
        [50, 51],
        [14, 15],
    ]


def test_the_record_of_a_folder_grows_and_repeats_no_file(tmp_path):
    first, second = outputs_of([CAT], 2, 10, tmp_path, PNG)

    write_record([first, second], lambda output: {"guidance": 1})
    write_record([second], lambda output: {"guidance": 3})

    lines = [
        json.loads(line)
        for line in (tmp_path / "generated.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [line["guidance"] for line in lines] == [1, 3]
    assert lines[0]["file"] == first.path.name
    assert lines[0] | {"file": ""} == {"file": "", "prompt": CAT.text, "seed": 10, "guidance": 1}


def test_rows_among_tokens():
    clip = Meta(2, 3, 2, 8, 1)  # a frame: two rows of three codes with EOL, and EOF

    assert [rows_in(clip, tokens) for tokens in (0, 3, 4, 8, 9, 13, 18, 19)] == [
        *(0, 0, 1, 2, 2, 3, 4, 4)
    ]


def test_progress_counts_rows(capsys):
    with RowProgress([(Meta(2, 3), 0), (Meta(1, 3), 0)]) as watch:
        watch([[0] * 4, [0] * 4])
        watch([[0] * 10, [0] * 6])

    assert "3/3 [" in capsys.readouterr().err


@pytest.fixture(scope="module")
def tokenizer() -> VisionTokenizer:
    network = TokenizerNetwork(
        codebook_size=64, base_channels=32, channel_multiplier=(1, 1, 1, 1), num_res_blocks=1
    )
    return VisionTokenizer(network).eval()


def test_a_preview_has_the_finished_rows_above_grey(tokenizer, tmp_path):
    vocabulary, codes_hw = Vocabulary.tiny(64), np.arange(20).reshape(4, 5)
    said = open_prompt(vocabulary, [Vision.image(codes_hw)]).tolist()
    said = said[said.index(vocabulary.codes_follow) + 1 :][: 2 * 6 + 3]
    previews = Previews(tokenizer, vocabulary, [META], [tmp_path / "cat.preview.png"])

    previews([said])

    with Image.open(tmp_path / "cat.preview.png") as image:
        assert image.size == (40, 32)
        drawn, rest = image.crop((0, 0, 40, 16)), image.crop((0, 16, 40, 32))
    assert {*rest.getdata()} == {(128, 128, 128)}
    import torch

    expected = to_image(tokenizer.decode_images(torch.from_numpy(codes_hw[None, :2]))[0])
    np.testing.assert_array_equal(drawn, expected)
    previews.remove()
    assert not (tmp_path / "cat.preview.png").exists()
