"""`emu3 preferences sample`, alone and over tensor parallel ranks."""

import json

import numpy as np
import pytest
from support.processes import run_processes
from support.running import emu3
from support.steps import losses
from support.tiny import VOCABULARY, make_packs, tiny_recipe

from emu3_megatron.cli import main
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.vision.tokenizer import VisionTokenizer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of one step, a vision tokenizer and prompts."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = tiny_recipe(make_packs(folder), folder)
    run_processes(losses, 1, recipe, 1, None, folder / "checkpoints")
    network = TokenizerNetwork(
        codebook_size=VOCABULARY.num_codes,
        base_channels=32,
        channel_multiplier=(1, 1, 1, 1),
        num_res_blocks=1,
    )
    VisionTokenizer(network).save(folder / "vision")
    (folder / "prompts.txt").write_text("a cat\ntwo dogs\n", encoding="utf-8")
    return folder


def arguments(folder, out):
    flags = ["--out", out, "--tokenizer", folder / "vision", "--grid", "2x3", "--samples", 3]
    words = ["preferences", "sample", folder, folder / "prompts.txt", *flags]
    return [str(word) for word in words]


@pytest.fixture(scope="module")
def drawn_alone(trained):
    ended = emu3(*arguments(trained, trained / "alone"), cwd=trained)
    assert ended.code in (None, 0), ended.said
    assert f"{trained}/alone: 3 samples for each of 2 prompts, guidance 1" in ended.said
    return trained / "alone"


def test_the_manifest_names_the_checkpoint(drawn_alone, trained):
    about = json.loads((drawn_alone / "manifest.json").read_text(encoding="utf-8"))

    assert about["checkpoint"] == str(trained / "checkpoints" / "step-00000001")
    assert about["guidance"] == 1  # it never saw an empty caption


def test_two_ranks_draw_what_one_draws(drawn_alone, trained):
    run_processes(main, 2, arguments(trained, trained / "two"))

    tokens = [np.fromfile(f / "samples.bin", np.int32) for f in (drawn_alone, trained / "two")]
    np.testing.assert_array_equal(*tokens)
    assert len(list((trained / "two" / "media").iterdir())) == 6


def test_images_without_a_tokenizer(trained):
    words = arguments(trained, trained / "none")
    at = words.index("--tokenizer")

    ended = emu3(*words[:at], *words[at + 2 :], cwd=trained)

    assert ended.code == 2
    assert "its recipe names no vision tokenizer; give --tokenizer" in ended.said
    assert not (trained / "none").exists()
