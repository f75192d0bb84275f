"""Bad input on the command line: one line that names it and the way out, and nothing written.

What each package refuses, in all its variants, is tested beside the package.
"""

import contextlib
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from support.processes import run_processes
from support.shards import write_documents

from emu3_megatron import manifest
from emu3_megatron.checkpoints.folders import FORMAT
from emu3_megatron.cli import main
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.data.packing.packs import pack_shards
from emu3_megatron.grammar import captioned_image, plain_text
from emu3_megatron.vision.tokenizer import VisionTokenizer
from emu3_megatron.vocabulary import Vocabulary

VOCABULARY = Vocabulary.tiny()
CONTEXT = 64


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder of the tiny tokenizer, of random weights."""
    folder = tmp_path_factory.mktemp("tokenizer")
    torch.manual_seed(0)
    VisionTokenizer(TokenizerNetwork(preset="tiny")).save(folder)
    return folder


@pytest.fixture
def refused(tmp_path, capsys):
    """A function that runs `emu3` and returns its one line of complaint."""

    def run(*arguments):
        before = contents(tmp_path)
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        assert exit.value.code == 2
        assert contents(tmp_path) == before
        return the_line(capsys.readouterr().err)

    return run


@pytest.fixture
def refused_apart(tmp_path):
    """The same in a process of its own, for commands that start Megatron's groups."""

    def run(*arguments):
        before = contents(tmp_path)
        ((code, errors),) = run_processes(run_main, 1, [str(argument) for argument in arguments])
        assert code == 2
        assert contents(tmp_path) == before
        return the_line(errors)

    return run


def run_main(arguments):
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main(arguments)
        except SystemExit as exit:
            return exit.code, errors.getvalue()
    return 0, errors.getvalue()


def contents(folder):
    """Every file with its bytes, every folder with None."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def the_line(errors):
    (line,) = errors.splitlines()
    assert line.startswith("emu3: ")
    return line


# Photos


@pytest.fixture
def photos(tmp_path):
    """A folder of one good photo."""
    folder = tmp_path / "photos"
    folder.mkdir()
    add_photo(folder, "good", (24, 16))
    (folder / "good.txt").write_text("a cat", encoding="utf-8")
    return folder


def add_photo(folder, stem, size):
    Image.new("RGB", size, (200, 100, 50)).save(folder / f"{stem}.png")


def without_caption(folder):
    add_photo(folder, "mute", (32, 16))
    return "no caption: none found"


def broken(folder):
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not a photo")
    (folder / "broken.txt").write_text("a ruin", encoding="utf-8")
    return "unreadable: not a readable image"


def beyond_aspect_5(folder):
    add_photo(folder, "rope", (51, 10))
    (folder / "rope.txt").write_text("a rope", encoding="utf-8")
    return "too narrow: 51x10"


BAD_PHOTOS = [without_caption, broken, beyond_aspect_5]


def prepare_images(folder, tokenizer, out, *flags):
    """Without a recipe, but for photos as small as these."""
    given = {"--source": folder, "--out": out, "--tokenizer": tokenizer}
    pairs = [part for pair in given.items() for part in pair]
    small = ["images={min_side: 1, min_quality: 0, ocr: false, near_duplicate_bits: -1, area: 384}"]
    return [
        "prepare",
        "images",
        *map(str, pairs),
        *flags,
        "model=emu3-tiny",
        "run.executor=local",
        *small,
    ]


@pytest.mark.parametrize("spoil", BAD_PHOTOS)
def test_bad_photos_are_set_aside_and_counted(spoil, photos, tokenizer, tmp_path, capsys):
    reason = spoil(photos)

    main(prepare_images(photos, tokenizer, tmp_path / "data"))

    head, _, _ = reason.partition(":")
    assert "images: 1 of 2 kept" in (printed := capsys.readouterr().out)
    assert f"set aside: 1 {head}" in printed


def test_folders_may_have_any_name(photos, tokenizer, tmp_path, capsys):
    folder = photos.rename(tmp_path / "no: 图 🐈 #1")

    main(prepare_images(folder, tokenizer, tmp_path / "data"))

    assert "images: 1 of 1 kept" in capsys.readouterr().out


@pytest.fixture
def stopped(tmp_path, capsys):
    """A function that runs `emu3 prepare` into tmp_path/data, which must end in one line. Scores
    stay, so that they need not be made again, but nothing that trains. Returns the line."""

    def run(*arguments):
        with pytest.raises(SystemExit):
            main(list(map(str, arguments)))
        left = {path.name for path in tmp_path.glob("data/*")}
        assert not {"shards", "packs", "manifest.json"} & left
        return the_line(capsys.readouterr().err)

    return run


def test_strict_refuses_a_broken_photo(photos, tokenizer, tmp_path, stopped):
    broken(photos)

    line = stopped(*prepare_images(photos, tokenizer, tmp_path / "data", "--strict"))

    assert re.search(r"broken\.jpg: not a readable image .*; repair it, or let it", line)


def test_an_empty_folder_is_named(tokenizer, tmp_path, stopped):
    (tmp_path / "nothing").mkdir()

    line = stopped(*prepare_images(tmp_path / "nothing", tokenizer, tmp_path / "data"))
    assert not (tmp_path / "data").exists()

    assert re.search(r"nothing: no file ends in one of \.apng, .*\.png", line)


def test_a_folder_that_is_no_tokenizer_is_named(photos, tmp_path, refused):
    line = refused(*prepare_images(photos, photos, tmp_path / "data"))

    assert re.search(r"photos/config\.json: cannot be read .*is this a tokenizer\?", line)


def test_a_text_vocabulary_that_is_not_there_is_named_once(photos, tmp_path, refused):
    flags = ["--source", photos, "--out", tmp_path / "data", f"ranks_file={tmp_path / 'ranks'}"]

    line = refused("prepare", "text", *flags)

    assert re.search(r"ranks: no such file; give the path of emu3\.tiktoken", line)


# Shards and packs


@pytest.fixture
def shard(tmp_path):
    """A valid shard of two texts and an image of 22 tokens."""
    return write_shard(tmp_path / "shard", ["one", "two"])


def write_shard(prefix, texts):
    image = captioned_image(VOCABULARY, "a cat", np.zeros((3, 4), np.int64))
    return write_documents(prefix, VOCABULARY, [*(plain_text(VOCABULARY, t) for t in texts), image])


def pack(shard, out, context=CONTEXT):
    return ["pack", shard, "--out", out, "--context", context]


def test_an_image_longer_than_the_context_is_named(shard, tmp_path, refused):
    line = refused(*pack(shard, tmp_path / "short.pack", context=16))

    assert re.search(r"shard: document 2 .* 22 tokens, the context is 16; raise the context", line)


@pytest.mark.parametrize("command", ["pack", "check"])
def test_a_shard_cut_short_is_named(command, shard, tmp_path, refused):
    data = shard.with_suffix(".bin")
    size = data.stat().st_size
    data.write_bytes(data.read_bytes()[:-8])

    line = refused(*(pack(shard, tmp_path / "a.pack") if command == "pack" else ["check", shard]))

    assert re.search(rf"shard\.bin: {size - 8} bytes, expected {size} .*copy it again", line)


@pytest.mark.parametrize("command", ["pack", "check"])
def test_an_id_outside_the_vocabulary_is_named(command, shard, tmp_path, refused):
    data = bytearray(shard.with_suffix(".bin").read_bytes())
    data[24:28] = np.int32(VOCABULARY.size).tobytes()  # in the second text, after 5 tokens and BOS
    shard.with_suffix(".bin").write_bytes(data)

    line = refused(*(pack(shard, tmp_path / "a.pack") if command == "pack" else ["check", shard]))

    assert re.search(r"shard\.bin: document 1 holds id 979, the vocabulary has 979; use", line)


def test_a_pack_made_from_other_shards_is_named(shard, tmp_path, refused):
    pack_shards([shard], tmp_path / "a.pack", CONTEXT, vocabulary=VOCABULARY)
    write_shard(shard, ["three", "four"])

    line = refused("check", tmp_path / "a.pack")

    assert re.search(r"a\.pack: made from other shards than .*shard; run emu3 pack again", line)


def test_a_pack_without_a_field_is_named(shard, tmp_path, refused):
    pack_shards([shard], tmp_path / "a.pack", CONTEXT, vocabulary=VOCABULARY)
    header = json.loads((tmp_path / "a.pack" / "pack.json").read_text(encoding="utf-8"))
    del header["context"]
    (tmp_path / "a.pack" / "pack.json").write_text(json.dumps(header), encoding="utf-8")

    line = refused("check", tmp_path / "a.pack")

    assert re.search(r"a\.pack/pack\.json: context missing; run emu3 pack again", line)


def test_a_place_that_cannot_be_written_is_named(shard, tmp_path, refused):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")

    assert re.search(r"file: File exists", refused(*pack(shard, tmp_path / "file" / "a.pack")))


# Recipes


def train(shard, *overrides):
    """`emu3 train` of a recipe that is valid but for the overrides."""
    folder = shard.parent
    given = {"run.dir": folder / "run", "data.context": CONTEXT, "run.steps": 20, "batch.size": 4}
    pairs = [f"{key}={value}" for key, value in given.items()]
    sources = f"data.sources=[{{pack: {folder / 'train.pack'}}}]"
    return ["train", "stage1-tiny-cpu", *pairs, sources, *overrides]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("parallel.tensor=3", r"parallel\.tensor=3 does not divide model\.heads=4; choose"),
        ("optimizer.learning_rate=1", r"optimizer\.learning_rate: no such key; choose one of lr,"),
        ("optimizer.schedule.warmup_step=1", r"warmup_step: no such key; did you mean warmup_"),
        ("run.steps=many", r"run\.steps: .*valid integer.* \(given 'many'\)"),
        (
            "optimizer.schedule.warmup_steps=21",
            r"warmup_steps=21 is more than run\.steps=20; lower it",
        ),
        (
            "optimizer.schedule.min_lr=1",
            r"schedule\.min_lr=1\.0 is above optimizer\.lr=0\.002; lower it",
        ),
        ("run.steps", r"run\.steps: an override is written dotted\.key=value"),
    ],
)
def test_a_recipe_that_does_not_fit_is_named(override, message, shard, refused):
    assert re.search(message, refused(*train(shard, override)))


def test_a_recipe_that_is_not_there_is_named(refused):
    assert re.search(
        r"stage9: no such recipe file; shipped recipes: .*stage1", refused("train", "stage9")
    )


def test_packs_that_are_not_there_are_named(shard, refused_apart):
    line = refused_apart(*train(shard))

    assert re.search(r"train\.pack: no packs there; make them with emu3 pack", line)


# Checkpoints


def test_a_checkpoint_of_another_model_is_named(shard, tmp_path, refused_apart):
    pack_shards([shard], tmp_path / "train.pack", CONTEXT, vocabulary=VOCABULARY)
    write_checkpoint(tmp_path / "run" / "checkpoints", {"preset": "emu3-tiny", "layers": 3})

    line = refused_apart(*train(shard))

    assert re.search(
        r"a checkpoint of another model: model\.layers is 3 there and 2 in the recipe; choose", line
    )


def write_checkpoint(folder, model):
    """What a checkpoint tells before any weight is read."""
    (folder / "beside").mkdir(parents=True)
    about = {"format": FORMAT, "step": 1, "recipe": {"model": model}}
    about["vocabulary"] = VOCABULARY.fingerprint()
    manifest.commit(folder / "beside", folder / "step-00000001", about, {})
    (folder / "latest").write_text("step-00000001\n", encoding="utf-8")


def generate(tmp_path, out):
    return ["generate", "image", tmp_path, "a cat", "--out", tmp_path / out]


def test_a_folder_without_checkpoint_is_named(tmp_path, refused_apart):
    line = refused_apart(*generate(tmp_path, "cat.png"))

    assert re.search(r": no checkpoint here; give a run's folder or a step-… folder", line)


def test_images_are_written_as_png_alone(tmp_path, refused):
    line = refused(*generate(tmp_path, "cat.jpg"))

    assert re.search(r"--out .*cat\.jpg: name a file that ends in \.png", line)


PREPARE = ["prepare", "images", "--source", "photos", "--tokenizer", "t"]
PACK = ["pack", "shard", "--out", "a.pack", "--context", "64"]
GENERATE = ["generate", "image", "run", "a cat", "--out", "cat.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"Missing command; see emu3 --help"),
        (["quux"], r"No such command 'quux'; see emu3 --help"),
        (["inspect"], r"Missing command; see emu3 inspect --help"),
        (["train"], r"Missing argument 'RECIPE'; see emu3 train --help"),
        (["pack", "shard", "--context", "64"], r"Missing option '--out'; see emu3 pack --help"),
        ([*GENERATE, "--grid", "90"], r"'--grid': 90: write HEIGHTxWIDTH, 90x90 say; see emu3 gen"),
        (
            [*GENERATE, "--seed", "new"],
            r"'--seed': .*valid integer.*; see emu3 generate image",
        ),
        ([*GENERATE, "--sed", "1"], r"No such option.*--sed.*; see emu3 generate image --help"),
        ([*PACK, "--context", "0"], r"'--context': .*; see emu3 pack --help"),
        ([*PACK, "--context", "-5"], r"'--context': .*; see emu3 pack --help"),
        ([*PACK, "--max-documents", "0"], r"'--max-documents': .*; see emu3 pack --help"),
        ([*PACK, "--model", "emu4"], r"--model emu4: no such preset; choose one of emu3-8b,"),
        (PREPARE, r"prepare images: give a recipe, or --source and --out"),
        ([*PREPARE, "--out", "data", "images.area=0"], r"images\.area: .* greater than 0"),
        (
            [*PREPARE, "--out", "data", "images.understanding=2"],
            r"understanding: .*less than or equ",
        ),
        (["prepare", "all"], r"prepare all: give a recipe"),
    ],
)
def test_flags_that_do_not_fit_are_named(arguments, message, shard, refused, monkeypatch):
    monkeypatch.chdir(shard.parent)

    assert re.search(message, refused(*arguments))
