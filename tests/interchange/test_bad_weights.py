"""Folders that cannot be imported, targets that cannot be written: one line, nothing half-done."""

import contextlib
import io
import json
import multiprocessing
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.processes import run_processes

from emu3_megatron import parallel
from emu3_megatron.cli import main
from emu3_megatron.errors import InputError
from emu3_megatron.interchange.exporting import export_folder
from emu3_megatron.interchange.importing import import_folder
from emu3_megatron.interchange.weights import Weights

SHARD = "model-00002-of-*.safetensors"


@pytest.fixture
def folder(hub_folders, tmp_path):
    """A sound folder of several files, to be spoiled."""
    return shutil.copytree(hub_folders["transformers", torch.float32], tmp_path / "hf")


def change_config(folder, **values):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.update(values)
    path.write_text(json.dumps(config))


def change_text_config(folder, **values):
    text = json.loads((folder / "config.json").read_text())["text_config"]
    change_config(folder, text_config={**text, **values})


def rewrite_shard(folder, change):
    (file,) = folder.glob(SHARD)
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def another_model(folder):
    change_config(folder, model_type="llama")
    return r"config\.json: model_type is 'llama', not a model of Emu3"


def other_tensors(folder):
    shutil.rmtree(folder)
    folder.mkdir()
    save_file({"wte.weight": torch.zeros(2)}, folder / "model.safetensors")
    return r"hf: holds neither a decoder nor a vision tokenizer of Emu3"


def without_a_shard(folder):
    (file,) = folder.glob(SHARD)
    file.unlink()
    return rf"{file.name}: no such file, though the index lists it"


def without_a_tensor(folder):
    rewrite_shard(folder, lambda tensors: tensors.pop(sorted(tensors)[0]))
    return r"model\.safetensors\.index\.json: lists .*, which no file holds"


def of_another_shape(folder):
    change_text_config(folder, intermediate_size=100)
    return r"mlp\.gate_proj\.weight is 96 x 64, config\.json makes it 100 x 64"


def truncated(folder):
    (file,) = folder.glob(SHARD)
    with open(file, "r+b") as shard:
        shard.truncate(file.stat().st_size - 10)
    return rf"{file.name}: damaged or not a safetensors file"


def with_a_foreign_tensor(folder):
    save_file({"model.text_model.adapter": torch.zeros(2)}, folder / "extra.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.text_model.adapter"] = "extra.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return r"model\.text_model\.adapter belongs to no model of Emu3"


def of_mixed_precision(folder):
    rewrite_shard(folder, lambda t: t.update({k: v.bfloat16() for k, v in t.items()}))
    return r"its weights are bfloat16 and float32; give all in fp32 or all in bf16"


def of_another_vocabulary(folder):
    change_text_config(folder, pad_token_id=0)
    return r"pad_token_id 0 is not a vocabulary of Emu3's kind; expected pad_token_id 256"


def with_scaled_positions(folder):
    rope = {"rope_theta": 1e6, "rope_type": "linear", "factor": 2.0}
    change_text_config(folder, rope_parameters=rope)
    return r"rope_parameters\.rope_type is linear; only default is supported"


def without_config(folder):
    (folder / "config.json").unlink()
    return r"config\.json: no such file; is this a Hugging Face folder\?"


def without_weights(folder):
    (folder / "model.safetensors.index.json").unlink()
    return r"hf: no model\.safetensors and no model\.safetensors\.index\.json here"


SPOILS = [
    another_model,
    other_tensors,
    without_a_shard,
    without_a_tensor,
    of_another_shape,
    truncated,
    with_a_foreign_tensor,
    of_mixed_precision,
    of_another_vocabulary,
    with_scaled_positions,
    without_config,
    without_weights,
]


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_bad_folder_is_refused(spoil, folder, tmp_path, mesh):
    message = spoil(folder)

    with pytest.raises(InputError, match=message) as refused:
        import_folder(folder, tmp_path / "out")

    assert "\n" not in str(refused.value)
    assert set(tmp_path.iterdir()) <= {folder}


def test_a_target_that_exists_is_left_alone(folder, checkpoints, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("kept")

    with pytest.raises(InputError, match=r"out: exists; choose another --to"):
        import_folder(folder, tmp_path / "out")
    with pytest.raises(InputError, match=r"out: exists; choose another --to"):
        export_folder(checkpoints["baai", torch.float32], tmp_path / "out")

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_a_layout_that_does_not_divide_is_refused(folder, tmp_path, mesh):
    with pytest.raises(InputError, match=r"--tensor 8: does not divide the model's kv_heads, 4"):
        import_folder(folder, tmp_path / "out", tensor=8)


def test_layouts_that_hold_other_models_are_refused(checkpoints, tmp_path):
    decoder = checkpoints["baai", torch.float32]
    vision = checkpoints["baai-vision", torch.float32]

    with pytest.raises(InputError, match=r"--layout hub: holds decoder and vision tokenizer"):
        export_folder(decoder, tmp_path / "out", "hub")
    with pytest.raises(InputError, match=r"--tokenizer: BAAI's layout keeps it in a folder of its"):
        export_folder(decoder, tmp_path / "out", "baai", tokenizer=vision)
    with pytest.raises(InputError, match=r"hf: no checkpoint here"):
        export_folder(tmp_path / "hf", tmp_path / "out")


def import_until_killed(folder, target):
    """As `kill -9` in the middle of the weights."""
    left = iter(range(10))
    read = Weights.__getitem__

    def read_or_die(self, name):
        if next(left, None) is None:
            os._exit(9)
        return read(self, name)

    Weights.__getitem__ = read_or_die
    parallel.start()
    import_folder(folder, target)


def test_a_kill_leaves_nothing_under_the_name(folder, tmp_path):
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=import_until_killed, args=(folder, tmp_path / "out"))
    process.start()
    process.join()

    assert process.exitcode == 9
    assert not (tmp_path / "out").exists()


def call(*commands):
    """Run `emu3` on each of these; returns exit code, output and errors of the last."""
    for command in commands:
        out, errors, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            try:
                main(command)
            except SystemExit as exit:
                code = exit.code
        parallel.stop(keep_processes=True)
    return code, out.getvalue(), errors.getvalue()


def test_the_command_line_walks_there_and_back(folder, tmp_path):
    ours, back = str(tmp_path / "ours"), str(tmp_path / "back")
    ((code, out, _),) = run_processes(
        call,
        1,
        ["convert", "import", "--from", str(folder), "--to", ours, "--tensor", "2"],
        ["convert", "export", "--from", ours, "--to", back],
        ["convert", "verify", "--hf", back, "--checkpoint", ours],
    )

    assert code == 0
    assert "decoder: largest logit difference" in out
    assert "vision tokenizer: 100.00% of image codes equal" in out


def test_the_command_line_answers_in_one_line(tmp_path):
    command = ["convert", "import", "--from", str(tmp_path / "no"), "--to", str(tmp_path / "out")]
    ((code, _, errors),) = run_processes(call, 1, command)

    assert code == 2
    assert errors == f"emu3: {tmp_path / 'no'}: no such folder\n"
