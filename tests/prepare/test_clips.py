"""Clips to a shard."""

import pytest
import torch

from emu3_megatron.data.store import TokenStore
from emu3_megatron.errors import InputError
from emu3_megatron.grammar import parse
from emu3_megatron.prepare.clips import prepare_clips
from emu3_megatron.vision.clips import write_clip

AREA = 48 * 32


@pytest.fixture
def folder(tmp_path):
    """One captioned clip of 10 frames at 8 frames a second."""
    folder = tmp_path / "clips"
    folder.mkdir()
    write_clip(folder / "run.mp4", torch.rand(10, 3, 32, 48) * 2 - 1, fps=8)
    (folder / "run.txt").write_text("a running dog")
    return folder


def test_a_clip_becomes_a_captioned_document(folder, tmp_path, tokenizer, vocabulary):
    counts = prepare_clips(folder, tmp_path / "shard", tokenizer, vocabulary, area=AREA)

    document = TokenStore(tmp_path / "shard", vocabulary).document(0)
    caption, vision = parse(vocabulary, document.tokens)
    assert caption == "a running dog"
    assert str(vision.meta) == "4*6*2 8fps 1s"  # 2 of the 10 frames make no latent frame
    assert counts.documents == 1


def test_num_frames_cuts_the_clip(folder, tmp_path, tokenizer, vocabulary):
    prepare_clips(folder, tmp_path / "shard", tokenizer, vocabulary, area=AREA, num_frames=4)

    document = TokenStore(tmp_path / "shard", vocabulary).document(0)
    assert str(parse(vocabulary, document.tokens)[1].meta) == "4*6*1 8fps 0.5s"


def test_too_short_a_clip_is_named(folder, tmp_path, tokenizer, vocabulary):
    with pytest.raises(InputError, match=r"run\.mp4: a clip of 3 frames: at least 4"):
        prepare_clips(
            folder,
            tmp_path / "shard",
            tokenizer,
            vocabulary,
            area=AREA,
            num_frames=3,
            strict=True,
        )


def test_a_broken_clip_is_skipped(folder, tmp_path, tokenizer, vocabulary):
    (folder / "broken.mp4").write_bytes(b"not a clip")
    (folder / "broken.txt").write_text("a ruin")

    counts = prepare_clips(folder, tmp_path / "shard", tokenizer, vocabulary, area=AREA)

    assert (counts.documents, counts.skipped) == (1, 1)


def test_filters_leave_clips_out(folder, tmp_path, tokenizer, vocabulary):
    with pytest.raises(InputError, match="no documents"):
        prepare_clips(
            folder,
            tmp_path / "shard",
            tokenizer,
            vocabulary,
            area=AREA,
            filters=[lambda clip, caption: len(clip.pixels_tchw) > 10],
        )
