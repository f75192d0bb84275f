"""Folders that cannot be imported, targets that cannot be written: one line, nothing half-done."""

import contextlib
import io
import json
import multiprocessing
import os
import re
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
from emu3_megatron.interchange.sharded import Frame
from emu3_megatron.interchange.verify import verify
from emu3_megatron.interchange.weights import Weights

SHARD = "model-00002-of-*.safetensors"


@pytest.fixture
def folder(hub_folders, tmp_path):
    """A valid folder of several files, to be spoiled."""
    return shutil.copytree(hub_folders["transformers", torch.float32], tmp_path / "hf")


def change_config(folder, **values):
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.update(values)
    path.write_text(json.dumps(config), encoding="utf-8")


def change_text_config(folder, **values):
    text = json.loads((folder / "config.json").read_text(encoding="utf-8"))["text_config"]
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
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    index["weight_map"]["model.text_model.adapter"] = "extra.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return r"model\.text_model\.adapter belongs to no model of Emu3"


def of_mixed_precision(folder):
    rewrite_shard(folder, lambda t: t.update({k: v.bfloat16() for k, v in t.items()}))
    return r"its weights are bfloat16 and float32; give all in fp32 or all in bf16"


def with_a_head_of_another_precision(folder):
    (file,) = [f for f in folder.glob("*.safetensors") if "lm_head.weight" in load_file(f)]
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].bfloat16()
    save_file(tensors, file, metadata={"format": "pt"})
    return r"its weights are bfloat16 and float32; give all in fp32 or all in bf16"


def of_words_for_sizes(folder):
    change_text_config(folder, hidden_size="wide")
    return r"config\.json: hidden_size: Input should be a valid integer"


def of_another_vocabulary(folder):
    change_text_config(folder, pad_token_id=0)
    return r"pad_token_id 0 is not a vocabulary of Emu3's kind; expected pad_token_id 256"


def with_scaled_positions(folder):
    rope = {"rope_theta": 1e6, "rope_type": "linear", "factor": 2.0}
    change_text_config(folder, rope_parameters=rope)
    return r"rope_parameters\.rope_type is linear; only default is supported"


def change_vq_config(folder, **values):
    vision = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vq_config"]
    change_config(folder, vq_config={**vision, **values})


def change_vocabulary_map(folder, change):
    entries = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocabulary_map"]
    change_config(folder, vocabulary_map=change(entries))


def with_two_bases_of_positions(folder):
    change_text_config(folder, rope_theta=1e4, rope_parameters={"rope_theta": 1e6})
    return r"text_config\.rope_theta is 10000\.0, and rope_parameters\.rope_theta 1000000\.0; give"


def with_part_of_a_head_turned(folder):
    change_text_config(folder, rope_parameters={"rope_theta": 1e6, "partial_rotary_factor": 0.5})
    return r"text_config\.rope_parameters\.partial_rotary_factor is 0\.5; nothing here reads it"


def with_a_field_that_nobody_reads(folder):
    change_text_config(folder, sliding_window=4)
    return r"text_config\.sliding_window is 4; nothing here reads it, so the model may be another"


def with_wider_heads(folder):
    change_text_config(folder, head_dim=16)
    return r"text_config\.head_dim is 16; only 8 is supported"


def with_vision_heads(folder):
    change_vq_config(folder, num_attention_heads=2)
    return r"vq_config\.num_attention_heads is 2; only 1 is supported"


def with_another_end_of_line(folder):
    change_vocabulary_map(folder, lambda entries: {**entries, "<|extra_200|>": 460})
    return r"vocabulary_map gives <\|extra_200\|> 460; expected 459, by vocab_size"


def with_another_image_id(folder):
    change_vocabulary_map(folder, lambda entries: {**entries, "<image>": 260})
    return r"vocabulary_map gives <image> 260; expected 259, by vocab_size"


def with_codes_in_reverse(folder):
    def reverse(entries):
        codes = [name for name in entries if name.startswith("<|visual")]
        ids = [entries[name] for name in reversed(codes)]
        return {**entries, **dict(zip(codes, ids, strict=True))}

    change_vocabulary_map(folder, reverse)
    return r"vocabulary_map gives <\|visual token 000000\|> 1066; expected 467, by vocab_size"


def with_another_codebook(folder):
    change_vq_config(folder, codebook_size=500)
    tensors = {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}
    (codebook,) = [name for name in tensors if "quantize.embedding" in name]
    tensors[codebook] = tensors[codebook][:500].contiguous()
    for file in folder.glob("model*"):
        file.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return r"vq_config\.codebook_size is 500, text_config\.vocab_size has 600 codes"


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
    with_a_head_of_another_precision,
    of_words_for_sizes,
    of_another_vocabulary,
    with_scaled_positions,
    with_two_bases_of_positions,
    with_part_of_a_head_turned,
    with_a_field_that_nobody_reads,
    with_wider_heads,
    with_vision_heads,
    with_another_end_of_line,
    with_another_image_id,
    with_codes_in_reverse,
    with_another_codebook,
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


@pytest.mark.parametrize(
    "spoil",
    [
        with_two_bases_of_positions,
        with_vision_heads,
        with_codes_in_reverse,
        with_another_image_id,
        with_a_field_that_nobody_reads,
    ],
)
def test_a_folder_that_contradicts_itself_is_not_verified(spoil, folder, checkpoints):
    message = spoil(folder)

    with pytest.raises(InputError, match=message):
        verify(folder, checkpoints["transformers", torch.float32])


def test_a_target_that_exists_is_left_alone(folder, checkpoints, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("kept", encoding="utf-8")

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


def damaged(checkpoints, folder):
    """A copy of a checkpoint with one bit changed in its weights."""
    shutil.copytree(checkpoints["transformers", torch.float32], folder)
    (file,) = (folder / "checkpoints").glob("*.distcp")
    with open(file, "r+b") as weights:
        middle = file.stat().st_size // 2
        weights.seek(middle)
        byte = weights.read(1)[0]
        weights.seek(middle)
        weights.write(bytes([byte ^ 1]))
    return folder


def test_a_damaged_checkpoint_is_refused(folder, checkpoints, tmp_path):
    ours = damaged(checkpoints, tmp_path / "ours")

    with pytest.raises(InputError, match=r"distcp: its bytes are not those that were written"):
        export_folder(ours, tmp_path / "out")
    with pytest.raises(InputError, match=r"distcp: its bytes are not those that were written"):
        verify(folder, ours)

    assert set(tmp_path.iterdir()) == {folder, ours}


def test_a_folder_that_lacks_something_is_not_compared(folder, checkpoints):
    tensors = {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}
    del tensors["model.text_model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").unlink()

    with pytest.raises(InputError, match=r"lacks .*layers\.1\.mlp\.up_proj\.weight"):
        verify(folder, checkpoints["transformers", torch.float32])


def test_ranks_that_are_not_there_are_refused(tmp_path, mesh):
    sizes = {"hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 1}
    config = {"model_type": "Emu3", **sizes, "num_attention_heads": 1, "num_key_value_heads": 1}
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({"model.embed_tokens.weight": torch.zeros(1)}, tmp_path / "hf" / "model.safetensors")

    with pytest.raises(InputError, match=r"no\.tiktoken: no such file"):
        import_folder(tmp_path / "hf", tmp_path / "out", ranks_file=tmp_path / "no.tiktoken")


def die_after(count, of, method):
    """As `kill -9`, when a method is called once more than `count` times."""
    left = iter(range(count))
    work = getattr(of, method)

    def work_or_die(*arguments):
        if next(left, None) is None:
            os._exit(9)
        return work(*arguments)

    setattr(of, method, work_or_die)


def import_until_killed(folder, target):
    die_after(10, Weights, "__getitem__")
    parallel.start()
    import_folder(folder, target)


def export_until_killed(checkpoint, target):
    die_after(5, Frame, "pieces")
    parallel.start()
    export_folder(checkpoint, target)


def test_a_kill_leaves_nothing_under_the_name(folder, checkpoints, tmp_path):
    context = multiprocessing.get_context("forkserver")
    checkpoint = checkpoints["transformers", torch.float32]
    for convert, source in ((import_until_killed, folder), (export_until_killed, checkpoint)):
        process = context.Process(target=convert, args=(source, tmp_path / "out"))
        process.start()
        process.join()

        assert process.exitcode == 9
        assert not (tmp_path / "out").exists()
        (unfinished,) = tmp_path.glob(".out.*.tmp")
        assert list(unfinished.iterdir())
        shutil.rmtree(unfinished)


def call(*commands):
    """Run `emu3` on each of these; returns exit code, output and errors of each."""
    answers = []
    for command in commands:
        out, errors, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            try:
                main(list(map(str, command)))
            except SystemExit as exit:
                code = exit.code
        parallel.stop(keep_processes=True)
        answers.append((code, out.getvalue(), errors.getvalue()))
    return answers


def test_the_command_line_walks_there_and_back(folder, tmp_path):
    ours, back = tmp_path / "ours", tmp_path / "back"
    (answers,) = run_processes(
        call,
        1,
        ["convert", "import", "--from", folder, "--to", ours, "--tensor", "2"],
        ["convert", "export", "--from", ours, "--to", back],
        ["convert", "verify", "--hf", back, "--checkpoint", ours],
    )

    (_, _, imported), (_, _, exported), (_, compared, _) = answers
    assert [code for code, _, _ in answers] == [0, 0, 0]
    assert re.search(r"import: 100%\|.*tokenizer: 100%\|", imported, re.DOTALL)
    assert "export: 100%|" in exported
    assert "decoder: largest logit difference" in compared
    assert "vision tokenizer: 100.00% of image codes equal" in compared


def test_the_command_line_answers_in_one_line(hub_folders, checkpoints, tmp_path):
    commands, messages = [], []
    for spoil in SPOILS:
        source = tmp_path / spoil.__name__ / "hf"
        shutil.copytree(hub_folders["transformers", torch.float32], source)
        commands.append(["convert", "import", "--from", source, "--to", tmp_path / "out"])
        messages.append(spoil(source))
    ours = damaged(checkpoints, tmp_path / "ours")
    valid = checkpoints["transformers", torch.float32]
    commands += [
        ["convert", "import", "--from", tmp_path / "no", "--to", tmp_path / "out"],
        ["convert", "export", "--from", ours, "--to", tmp_path / "out"],
        ["convert", "export", "--from", valid, "--to", ours],
    ]
    messages += [r"no: no such folder\n", r"its bytes are not those", r"ours: exists; choose"]
    before = set(tmp_path.iterdir())

    (answers,) = run_processes(call, 1, *commands)

    for (code, out, errors), message in zip(answers, messages, strict=True):
        assert (code, out) == (2, "")
        assert re.fullmatch(rf"emu3: .*{message}.*\n?", errors), errors
    assert set(tmp_path.iterdir()) == before
