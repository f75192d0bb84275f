"""A video is decoded once for the codes of its kept clips and the pictures of their captions."""

import itertools
import multiprocessing

import numpy as np
import pytest
import torch
from PIL import Image
from support.media import write_video

from emu3_megatron.config.prepare import PrepareRecipe
from emu3_megatron.data.shards.store import TokenStore
from emu3_megatron.media import videos
from emu3_megatron.media.videos import clip_bytes, clip_pixels, read_frames
from emu3_megatron.prepare import clip_codes, items
from emu3_megatron.prepare.captions import captioning
from emu3_megatron.prepare.captions.endpoint import as_sent
from emu3_megatron.prepare.clip_codes import EncodeVideo, VideoTask
from emu3_megatron.prepare.clip_frames import ClipFrames
from emu3_megatron.prepare.clips import score_clips
from emu3_megatron.prepare.codes_files import CodesFile, read_errors
from emu3_megatron.prepare.items import Board, start_task
from emu3_megatron.prepare.pipeline import prepare
from emu3_megatron.prepare.tables import read_table
from emu3_megatron.prepare.workspace import Workspace

SHOTS, FRAMES = 8, 12  # of the film, and of each shot
CLIPS = [(i * FRAMES, (i + 1) * FRAMES) for i in range(SHOTS)]


def pictures(shots=SHOTS):
    """Each shot is a picture of its own, which moves."""
    for seed in range(shots):
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 12, 3), np.uint8)
        wide = Image.fromarray(coarse).resize((96, 48), Image.Resampling.BICUBIC)
        yield from (wide.crop((i, 0, i + 64, 48)) for i in range(FRAMES))


@pytest.fixture
def film(tmp_path):
    (tmp_path / "films").mkdir()
    return write_video(tmp_path / "films" / "a.mp4", list(pictures()))


@pytest.fixture
def decoded(monkeypatch):
    """A list that grows by every frame that any decoder gives."""
    seen = []

    def count(container, stream):
        for frame in decode(container, stream):
            seen.append(frame.pts)
            yield frame

    decode = videos.decode_packets
    monkeypatch.setattr(videos, "decode_packets", count)
    return seen


@pytest.fixture
def asked(monkeypatch):
    """Stands for the endpoint: a list of the pictures that it got of each clip."""

    class Endpoint:
        def __init__(self, config):
            self.config = config

        def captions(self, jpegs):
            seen.append(list(jpegs))
            return [f"caption {len(seen)}"]

    seen = []
    monkeypatch.setattr(captioning, "Endpoint", Endpoint)
    return seen


@pytest.fixture
def recipe(tmp_path, film, tokenizer):
    tokenizer.save(tmp_path / "tokenizer")
    endpoint = {"url": "http://nobody", "model": "any", "side": 40, "concurrency": 1}
    clips = {
        "source": film.parent,
        "captions": {"endpoint": endpoint},
        **{"min_seconds": 1, "min_quality": 0, "min_flow": 0, "max_flow": 9, "ocr": False},
        "area": 1536,
    }
    return PrepareRecipe.model_validate(
        {
            "out": tmp_path / "out",
            "model": "emu3-tiny",
            "tokenizer": tmp_path / "tokenizer",
            "clips": clips,
            "packs": [],
            "run": {"executor": "local"},
        }
    )


def test_captions_and_codes_take_one_pass_and_later_runs_none(recipe, film, decoded, asked):
    rows = score_clips(Workspace(recipe), recipe.clips)
    decoded.clear()

    prepare(recipe, ["clips"])

    assert [(row["start_frame"], row["end_frame"]) for row in rows] == CLIPS
    assert len(decoded) <= 1.3 * SHOTS * FRAMES
    images = [frame.image() for frame in read_frames(film)]
    assert asked == [[as_sent(image, 40) for image in images[a:b]] for a, b in CLIPS]

    decoded.clear()
    prepare(recipe, ["clips"])

    assert (decoded, len(asked)) == ([], SHOTS)


def open_groups(path):
    """B-frames that look behind the next key frame, in a container without an index."""
    options = {"x264-params": "open-gop=1:keyint=6:min-keyint=3:bframes=3:b-adapt=0"}
    return write_video(path.with_suffix(".mkv"), list(pictures(3)), options=options)


def without_times(path):
    options = {"x264-params": "keyint=6:bframes=3:b-adapt=0"}
    return write_video(path, list(pictures(3)), kind="h264", options=options)


def damaged(path):
    write_video(path, list(pictures(3)), options={"x264-params": "keyint=6:bframes=2"})
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + (data.index(b"moov") - data.index(b"mdat")) // 2
    data[middle : middle + 200] = b"\xff" * 200
    path.write_bytes(data)
    return path


def at_uneven_times(path):
    times = np.cumsum(np.random.default_rng(0).integers(1, 9, 3 * FRAMES)) / 50
    return write_video(path, list(pictures(3)), times.tolist())


@pytest.mark.parametrize("make", [open_groups, without_times, damaged, at_uneven_times])
def test_clips_of_one_pass_are_those_of_passes_of_their_own(tmp_path, make):
    path = make(tmp_path / "a.mp4")
    every = list(read_frames(path))
    assert len(every) > 24
    clips = [(2, 9), (9, 14), (20, len(every))]

    frames = ClipFrames(path)
    found = [[(f.number, f.time, f.image()) for f in frames.clip(*clip)] for clip in clips]

    for (first, end), clip in zip(clips, found, strict=True):
        assert clip == [(f.number, f.time, f.image()) for f in every[first:end]]


def test_pixels_of_a_clip_take_a_quarter_as_bytes_and_have_the_same_codes(film, tokenizer):
    images = [frame.image() for frame in read_frames(film)][:8]

    small, pixels = clip_bytes(images, 1536), clip_pixels(images, 1536)

    assert small.dtype == torch.uint8
    latents = [tokenizer.clip_latents(one[None]) for one in (small, pixels)]
    assert torch.equal(*latents)


# One clip that fails


@pytest.fixture
def encode(recipe, vocabulary, tmp_path):
    """A function that encodes all clips of the film; returns codes, and why others have none."""

    def run():
        rows = score_clips(Workspace(recipe), recipe.clips)
        task = VideoTask(tmp_path / "codes.npz", [{**row, "captions": []} for row in rows])
        EncodeVideo(recipe.clips, recipe.tokenizer, vocabulary, "cpu")(task)
        errors, file = read_errors(task.out), CodesFile(task.out)
        codes = {i: file[i].codes.tolist() for i in range(len(rows)) if i not in errors}
        return codes, errors

    return run


def test_a_clip_that_fails_costs_the_others_nothing(encode, monkeypatch):
    whole, none = encode()
    calls = itertools.count()

    def fail_in_the_third(image, side):
        if next(calls) == 2 * FRAMES + 3:
            raise IndexError("out of range")
        return as_sent(image, side)

    monkeypatch.setattr(clip_codes, "as_sent", fail_in_the_third)
    codes, errors = encode()

    assert (len(whole), none) == (SHOTS, {})
    assert errors == {2: "fails with IndexError (out of range)"}
    assert codes == {i: codes_of for i, codes_of in whole.items() if i != 2}


def test_a_clip_that_killed_its_worker_is_left_out_and_the_next_are_read(encode):
    whole, _ = encode()

    start_task({"a.mp4: frame 24": "the process that read it died (SIGSEGV)"})
    try:
        codes, errors = encode()
    finally:
        start_task({})

    assert errors == {2: "the process that read it died (SIGSEGV)"}
    assert codes == {i: codes_of for i, codes_of in whole.items() if i != 2}


def test_where_reading_ends_every_clip_behind_it_is_named(recipe, asked, monkeypatch, vocabulary):
    score_clips(Workspace(recipe), recipe.clips)

    def break_off(container, stream):
        for number, frame in enumerate(decode(container, stream)):
            if number == 6 * FRAMES + 2:
                raise OSError(5, "Input/output error")
            yield frame

    decode = videos.decode_packets
    monkeypatch.setattr(videos, "decode_packets", break_off)
    manifest = prepare(recipe, ["clips"])

    rows = read_table(recipe.out / "clips.parquet")
    reason = "unreadable: not a readable video (Input/output error)"
    assert [row["reason"] for row in rows] == [None] * 6 + [reason] * 2
    (shard,) = manifest["kinds"]["clips"]["shards"]
    assert len(TokenStore(recipe.out / "shards" / shard["name"], vocabulary)) == 6


def test_only_the_decoding_of_a_clip_has_to_show_progress(monkeypatch):
    """Between the steps of a decoder frames are encoded, which may take long."""
    board = Board(multiprocessing)
    monkeypatch.setattr(items, "_board", board)
    seen = []

    def decode():
        for step in range(2):
            seen.append(("decodes", board.timed))
            yield step

    def encode():
        for _ in items.timed(decode()):
            seen.append(("encodes", board.timed))

    items.attempt("a.mp4", encode, timed=False)

    assert seen == [("decodes", True), ("encodes", False)] * 2
