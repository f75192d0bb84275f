"""`emu3 check` knows every file and folder that emu3 writes, and tells others apart."""

import json
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file
from support.tiny import make_packs

from emu3_megatron import manifest
from emu3_megatron.alignment import samples
from emu3_megatron.checkpoints import folders
from emu3_megatron.cli import main
from emu3_megatron.cli.check import CHECKERS
from emu3_megatron.cli.kinds import FORMATS, Kind, kind_of
from emu3_megatron.config.model import ModelConfig
from emu3_megatron.config.presets import PRESETS
from emu3_megatron.config.tokenizer import TokenizerNetwork
from emu3_megatron.data import columns
from emu3_megatron.data.packing import pack_set
from emu3_megatron.errors import InputError
from emu3_megatron.prepare import workspace
from emu3_megatron.vision import tokenizer
from emu3_megatron.vision.tokenizer import VisionTokenizer


@pytest.fixture
def checked(capsys):
    """A function that runs `emu3 check`; returns its line."""

    def run(*arguments):
        main(["check", *map(str, arguments)])
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys):
    """A function that runs `emu3 check` on what is not whole; returns its line."""

    def run(path):
        with pytest.raises(SystemExit) as end:
            main(["check", str(path)])
        assert end.value.code == 2
        return capsys.readouterr().err

    return run


def write_checkpoint(folder, step=12, preset="emu3-tiny", **about):
    """A folder as `manifest.commit` leaves it; what its files hold is Megatron's business."""
    beside = folder.with_name("beside")
    beside.mkdir(parents=True)
    (beside / "__0_0.distcp").write_bytes(b"weights")
    (beside / "common.pt").write_bytes(b"state")
    model = {**PRESETS["emu3-tiny"], "preset": preset}
    model = ModelConfig.model_validate(model).model_dump(mode="json")
    recipe = {"model": model, "precision": "fp32"}
    about = {"format": "emu3-megatron/checkpoint/1", "step": step, "recipe": recipe, **about}
    manifest.commit(beside, folder, about, {})
    return folder


@pytest.fixture
def run_folder(tmp_path):
    """A run with two checkpoints."""
    for step in (8, 12):
        write_checkpoint(tmp_path / "run" / "checkpoints" / f"step-{step:08d}", step)
    (tmp_path / "run" / "checkpoints" / "latest").write_text("step-00000012\n", encoding="utf-8")
    (tmp_path / "run" / "run.json").write_text("{}", encoding="utf-8")
    return tmp_path / "run"


def make_tokenizer(folder):
    VisionTokenizer(TokenizerNetwork(preset="tiny")).save(folder)
    return folder


# What is what


def test_there_is_a_checker_for_every_kind():
    assert set(CHECKERS) == set(get_args(Kind))


def test_the_formats_are_those_that_are_written():
    written = {
        folders.FORMAT,
        *folders.OLD_FORMATS,
        pack_set.FORMAT,
        workspace.FORMAT,
        samples.FORMAT,
        columns.FORMAT,
        tokenizer.FORMAT,
    }

    assert {format for _, format, _ in FORMATS} == written


def test_a_checkpoint(tmp_path, checked):
    line = checked(write_checkpoint(tmp_path / "step-00000012"))

    assert "checkpoint of step 12, a decoder (emu3-tiny, 2 layers of 256, fp32)" in line
    assert line.endswith("; 2 files, 12 bytes (valid)\n")


def test_an_imported_checkpoint_says_from_where(tmp_path, checked):
    write_checkpoint(tmp_path / "imported" / "checkpoints", 0, None, imported_from="hub/Emu3")
    make_tokenizer(tmp_path / "imported" / "tokenizer")

    decoder, tokenizer = checked(tmp_path / "imported").splitlines()

    assert "step 0, a decoder (2 layers of 256, fp32), imported" in decoder
    assert "from hub/Emu3; " in decoder
    assert "a vision tokenizer of 512 codes" in tokenizer


@pytest.mark.parametrize("where", ["", "checkpoints"])
def test_of_a_run_the_newest_checkpoint(where, run_folder, checked):
    assert "step-00000012: checkpoint of step 12" in checked(run_folder / where)


def test_a_run_that_saved_nothing_yet(tmp_path, checked):
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")

    assert "a run that saved no checkpoint yet" in checked(tmp_path)


def test_a_vision_tokenizer_and_its_run(tmp_path, checked):
    make_tokenizer(tmp_path / "run" / "tokenizer")

    assert "a vision tokenizer of 512 codes" in checked(tmp_path / "run" / "tokenizer")
    assert "a vision tokenizer of 512 codes" in checked(tmp_path / "run")


def test_packs_and_shards(tmp_path):
    assert kind_of(make_packs(tmp_path)) == "packs"
    assert {kind_of(tmp_path / f"shard{end}") for end in ("", ".bin", ".idx", ".json")} == {"shard"}


def test_hugging_face_weights_are_told_apart(tmp_path, checked):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "emu3_text_model"}), encoding="utf-8"
    )
    save_file({"model.embed_tokens.weight": torch.zeros(4, 2)}, tmp_path / "model.safetensors")

    assert "Hugging Face weights of a decoder, 1 tensors by" in checked(tmp_path)


@pytest.mark.parametrize("recipe", ["stage1-tiny-cpu", "tokenizer-tiny-cpu", "prepare-tiny-cpu"])
def test_recipes_of_every_schema(recipe, checked):
    assert checked(recipe).endswith(f"{recipe}: a recipe (valid)\n")


# What is not


def test_a_changed_byte_of_a_checkpoint_is_found(tmp_path, refused):
    folder = write_checkpoint(tmp_path / "step-00000012")
    (folder / "common.pt").write_bytes(b"stave")

    assert "common.pt: its bytes are not those that were written" in refused(folder)


def test_a_lost_file_of_a_checkpoint_is_found(tmp_path, refused):
    folder = write_checkpoint(tmp_path / "step-00000012")
    (folder / "common.pt").unlink()

    assert "common.pt: missing" in refused(folder)


def test_a_manifest_that_is_no_json(tmp_path, refused):
    (tmp_path / "manifest.json").write_text('{"format"', encoding="utf-8")

    assert "manifest.json: damaged, it is not JSON" in refused(tmp_path)


def test_a_format_of_another_version(tmp_path):
    (tmp_path / "pack.json").write_text('{"format": "emu3-megatron/packs/9"}', encoding="utf-8")

    with pytest.raises(InputError, match=r"packs/9, which this version of emu3 does not know; use"):
        kind_of(tmp_path)


def test_nothing_there(tmp_path, refused):
    assert "no/where: no such file or folder; name one of: recipe, " in refused("no/where")


def test_a_folder_of_something_else(tmp_path, refused):
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}', encoding="utf-8")

    assert "nothing that emu3 reads or writes" in refused(tmp_path)


def test_a_file_of_a_folder(tmp_path, refused):
    folder = write_checkpoint(tmp_path / "step-00000012")

    assert "step-00000012 (checkpoint); name that folder" in refused(folder / "common.pt")


def test_of_a_folder_above_the_folders_inside_are_named(tmp_path, refused):
    make_tokenizer(tmp_path / "small")
    write_checkpoint(tmp_path / "step-00000012")

    assert "inside it are small (vision tokenizer), step-00000012 (checkpoint); " in refused(
        tmp_path
    )


def test_a_folder_of_shards_names_one(tmp_path, refused):
    make_packs(tmp_path)

    assert f"a folder of 1 shards; name one, such as {tmp_path}/shard" in refused(tmp_path)


def test_a_checkpoint_that_was_being_written(tmp_path, refused):
    unfinished = tmp_path / ".step-00000012.tmp"
    unfinished.mkdir()

    assert "a checkpoint that was not written to its end" in refused(unfinished)


def test_a_recipe_says_what_optional_packages_would_bring(checked):
    lines = checked("stage1-8b-h100x64").splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["flash-attn", "apex", "transformer-engine"]
    assert "nothing for this recipe" in lines[0]  # stage 1 trains with dropout
    assert lines[3] == "stage1-8b-h100x64: a recipe (valid)"
