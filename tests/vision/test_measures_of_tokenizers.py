"""Measures of a tokenizer: one number for any batch and process count; what each means."""

import math
import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from support.processes import run_processes

from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.errors import InputError
from emu3_megatron.media.files import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_files
from emu3_megatron.media.writers import write_clip, write_png
from emu3_megatron.vision.files import At, read_pixels
from emu3_megatron.vision.measures.reconstruction import Codec, codec_of, joined, means, measure
from emu3_megatron.vision.measures.seams import steps_of
from emu3_megatron.vision.measures.sharpness import gradient_b
from emu3_megatron.vision.measures.usage import counts_of, usage_of
from emu3_megatron.vision.tokenizer import VisionTokenizer

SMALL = {"base_channels": 32, "channel_multiplier": (1, 1, 1, 1), "num_res_blocks": 1}
AT = At(1024)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nine images of two shapes, three clips, a tokenizer that gives various codes."""
    folder = tmp_path_factory.mktemp("files")
    random = np.random.default_rng(0)
    for number in range(9):
        size = (32, 32) if number % 3 else (48, 24)
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8))
        write_png(folder / f"{number}.png", coarse.resize(size, Image.Resampling.BICUBIC))
    for number in range(3):
        write_clip(folder / f"{number}.mp4", torch.rand(9, 3, 32, 32) * 2 - 1, 12.0)
    torch.manual_seed(0)
    tokenizer = VisionTokenizer(TokenizerNetwork(codebook_size=64, **SMALL))
    torch.nn.init.normal_(tokenizer.quantize.embedding.weight, std=0.3)
    tokenizer.save(folder / "tokenizer")
    return folder


def pickled_by(folder, batch):
    """Without tensors, which would live no longer than the process."""
    return pickle.dumps(measured_by(folder, batch))


def measured_by(folder, batch):
    """This process's share of the files."""
    files = find_files(folder, IMAGE_SUFFIXES | VIDEO_SUFFIXES)
    share = files[int(os.environ.get("RANK", 0)) :: int(os.environ.get("WORLD_SIZE", 1))]
    codec = codec_of(VisionTokenizer.load(folder / "tokenizer"))
    return measure(codec, share, AT, batch=batch)


def numbers_of(measured):
    usages = [measured.usage(kind) for kind in ("image", "clip")]
    return {
        **means(measured.kept),
        **{f"tokens {i}": u.tokens for i, u in enumerate(usages)},
        **{f"perplexity {i}": u.perplexity for i, u in enumerate(usages)},
    }


def test_one_number_for_any_batch(folder):
    expected = numbers_of(measured_by(folder, 4))

    assert expected["tokens 0"] == 9 * 16 + 3 * 2  # 48 x 24 keeps its size
    assert expected["tokens 1"] == 3 * 2 * 16
    for batch in (1, 7):
        assert numbers_of(measured_by(folder, batch)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_one_number_for_any_number_of_processes(folder, count):
    parts = [*map(pickle.loads, run_processes(pickled_by, count, folder, 4))]

    expected = measured_by(folder, 4)
    assert [k.path for k in joined(parts).kept] == [k.path for k in expected.kept]
    assert numbers_of(joined(parts)) == pytest.approx(numbers_of(expected), abs=1e-6)


def test_psnr_is_the_mean_over_images_and_not_that_of_the_pooled_errors(tmp_path):
    """SimVQ's evaluation.py pools a batch: 21.25 for 23.25 dB."""
    for level in (5, 50):
        write_png(tmp_path / f"{level}.png", Image.new("RGB", (32, 32), (level, level, level)))
    black = Codec(lambda pixels: (torch.full_like(pixels, -1), None))

    found = measure(black, find_files(tmp_path, IMAGE_SUFFIXES), AT)

    each = [20 * math.log10(255 / level) for level in (5, 50)]
    assert means(found.kept)["PSNR"] == pytest.approx(sum(each) / 2)
    assert found.counts == {}


def test_pixels_are_rounded_before_they_are_compared(tmp_path):
    write_png(tmp_path / "grey.png", Image.new("RGB", (32, 32), (100, 100, 100)))
    nearly = Codec(lambda pixels: (pixels + 0.4 / 127.5, None))

    (kept,) = measure(nearly, [tmp_path / "grey.png"], AT).kept

    assert kept.psnr == 100  # an exact copy


def test_what_cannot_be_measured_is_named_and_counted(tmp_path):
    write_png(tmp_path / "good.png", Image.new("RGB", (32, 32)))
    write_png(tmp_path / "tiny.png", Image.new("RGB", (32, 8)))
    write_png(tmp_path / "white.png", Image.new("RGB", (32, 32), "white"))
    write_clip(tmp_path / "short.mp4", torch.zeros(3, 3, 32, 32), 12.0)
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    no_white = lambda pixels: (torch.where(pixels < 1, pixels, torch.nan), None)

    found = measure(Codec(no_white), find_files(tmp_path, IMAGE_SUFFIXES | VIDEO_SUFFIXES), At(256))

    assert [kept.path.name for kept in found.kept] == ["good.png"]
    reasons = {failed.path.name: failed.reason for failed in found.failed}
    assert set(reasons) == {"short.mp4", "tiny.png", "torn.jpg"}
    assert "3 frames at 12 a second, a clip needs 4" in reasons["short.mp4"]
    assert "SSIM" in reasons["tiny.png"]
    (white,) = found.broken
    assert (white.path.name, white.reason) == ("white.png", "NaN in 768 of 768 rebuilt values")


def test_squares_are_the_middle_of_images_and_frames(tmp_path):
    wide = Image.new("RGB", (96, 32))
    wide.paste("white", (32, 0, 64, 32))
    write_png(tmp_path / "wide.png", wide)

    assert (read_pixels(tmp_path / "wide.png", At.square(32)) == 1).all()
    with pytest.raises(InputError, match=r"--side 100: must be divisible by 8, as 96 is"):
        At.square(100)


def test_usage_is_over_the_counted_codes_alone():
    """LlamaGen's window of 65,536 codes starts full of code 0."""
    usage = usage_of(counts_of(torch.tensor([[3, 3], [5, 5]]), 8))

    assert (usage.tokens, usage.used, usage.share) == (4, 2, 0.25)
    assert usage.perplexity == pytest.approx(2)


def test_perplexity_is_exp_of_the_entropy():
    counts = torch.tensor([6, 3, 1, 0])
    p = (counts[:3] / 10).double()

    assert usage_of(counts).perplexity == pytest.approx(math.exp(-(p * p.log()).sum()))


def test_seams_are_the_steps_between_groups_of_four_frames():
    levels = torch.tensor([0, 1, 2, 3, 13, 14, 15, 16, 36, 37, 38, 39.0])
    frames = levels[:, None, None, None].expand(-1, 3, 8, 8)

    steps = steps_of(frames)

    assert (steps.across, steps.within) == (15, 1)
    assert steps_of(frames[:7]) is None


def test_a_gradient_has_the_length_of_both_directions():
    ramp = 3 * torch.arange(8.0)[:, None] + 4 * torch.arange(8.0)

    assert gradient_b(ramp.expand(1, 3, -1, -1)).tolist() == [5]
